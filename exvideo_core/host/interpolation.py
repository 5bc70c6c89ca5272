"""What lies between two frames, on the host's device: by optical flow, or by one of the host's own models."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F

from ..interpolate import Between, FlowBetween
from .memory import ran_out_of_memory
from .telling import warn

FLOW_FRAMES = 50
"""As many frames in float32 are held at once, counted, while one is made between two by their flow."""
_CPU = torch.device("cpu")


def interpolation_socket() -> str | None:
    """The type of the socket that the host's frame interpolation models travel on; None where it has none (0.3.75).

    It has changed its name between versions, so the host's own loader is asked.
    """
    try:
        nodes = importlib.import_module("comfy_extras.nodes_frame_interpolation")
        return str(nodes.FrameInterpolationModelLoader.define_schema().outputs[0].io_type)
    except (ImportError, AttributeError, IndexError):
        return None


def between_frames(model: Any = None) -> Between:
    """What lies between two frames.

    Args:
        model: one of the host's frame interpolation models (FILM, RIFE); None goes by optical flow.
    """
    if model is None:
        device = comfy.model_management.get_torch_device()
        # Apple's GPUs cannot warp with repeated edges in all versions of torch.
        return _FlowBetween(_CPU if device.type == "mps" else device)
    return _ModelBetween(model)


def _interruptible(device: torch.device) -> FlowBetween:
    return FlowBetween(device, check=comfy.model_management.throw_exception_if_processing_interrupted)


class _FlowBetween:
    """By optical flow, on a device of the host; from where its memory runs out, on the CPU."""

    def __init__(self, device: torch.device):
        self._device, self._between = device, _interruptible(device)

    def __call__(self, first: torch.Tensor, second: torch.Tensor, times: Sequence[float]) -> Iterator[torch.Tensor]:
        management, done = comfy.model_management, 0
        if not management.is_device_cpu(self._device):
            management.free_memory(FLOW_FRAMES * first.numel() * torch.float32.itemsize, self._device)
        try:
            for frame in self._between(first, second, times):
                yield frame
                done += 1
            return
        except Exception as error:
            if management.is_device_cpu(self._device) or not ran_out_of_memory(error):
                raise
        management.soft_empty_cache()
        warn(f"ExVideo Interpolate ran out of memory on {self._device} and goes on on the CPU, slower.")
        self._device, self._between = _CPU, _interruptible(_CPU)
        yield from self._between(first, second, times[done:])


class _ModelBetween:
    """A model of the host, as its own node calls it: frames [1, 3, H, W] in [0, 1] and a time to the frame there."""

    def __init__(self, patcher: Any):
        self._patcher = patcher

    def __call__(self, first: torch.Tensor, second: torch.Tensor, times: Sequence[float]) -> Iterator[torch.Tensor]:
        patcher = self._patcher
        network, device, dtype = patcher.model, patcher.load_device, patcher.model_dtype()
        height, width = first.shape[:2]
        align = getattr(network, "pad_align", 1)
        margins = (0, -width % align, 0, -height % align)
        needed = 0
        if estimate := getattr(network, "memory_used_forward", None):
            needed = estimate((1, height + margins[3], width + margins[1], 3), dtype)
        # Each time: what runs beside it, such as the decoder, may have taken its place.
        comfy.model_management.load_models_gpu([patcher], memory_required=needed)
        pair = [
            F.pad(frame.to(device, dtype).movedim(-1, 0)[None], margins, mode="replicate") for frame in (first, second)
        ]
        several = getattr(network, "forward_multi_timestep", None)
        if several is not None:  # finds the motion once for all times
            found = several(*pair, list(times)).split(1)
        else:
            found = (network(*pair, timestep=torch.full_like(pair[0][:, :1], time)) for time in times)
        for frame in found:
            yield frame[0, :, :height, :width].movedim(0, -1).clamp(0, 1).to(first)
