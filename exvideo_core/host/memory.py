"""Memory: what the host's devices have, and how a pass over a long clip is made to fit."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.ops
import torch

from ..budget import MIB, Pass, plan_pass
from ..chunked import Work
from ..layers import PositionLayers
from ..unet import attention_is_patched

log = logging.getLogger(__name__)
OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
_OF_DEVICE = getattr(torch, "AcceleratorError", OUT_OF_MEMORY)
WHOLE_CLIPS = 7 * 4
"""Bytes for each number of a clip's latents that lie on the device while it is denoised in windows: three times in
float32 in the sampler, twice as conditions, twice as predictions."""


def affine(module: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a module of the host as they act on x: patched, cast, and where x is."""
    weight, bias = comfy.ops.cast_bias_weight(module, x)
    return weight, bias


def work(budget: int | None, park: bool = False, pin: bool = False) -> Work:
    """Work on the host's modules, which an interrupt ends before the next chunk."""
    return Work(budget, affine, park, pin, comfy.model_management.throw_exception_if_processing_interrupted)


def free_memory(patcher: Any, device: torch.device) -> int:
    """Bytes of a device that a model's work can have; newer hosts count weights which they give up when it is short."""
    ask = getattr(patcher, "get_free_memory", comfy.model_management.get_free_memory)
    return int(ask(device))


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device has no more memory; newer hosts know more of these."""
    by_host = getattr(comfy.model_management, "is_oom", None)
    if by_host is not None:  # clears away what some of them leave behind
        return bool(by_host(error))
    return isinstance(error, OUT_OF_MEMORY) or (isinstance(error, _OF_DEVICE) and "out of memory" in str(error))


@dataclass
class Memory:
    """How the passes of one extended model go about memory.

    Attributes:
        setting: a name in `budget.BUDGETS`.
        channels: of the UNet's first level.
        patcher: a model on the device, for newer hosts, which see more free memory than there is beside it.
        ran_out: numbers in the latents of a pass in which memory ran out, and bytes that passes as large may work in
            since; None before it ever did.
    """

    setting: str
    channels: int
    patcher: Any = None
    ran_out: tuple[int, int] | None = None
    _tried: int | None = None
    """Bytes that the pass under way works in; None where it is not ours."""

    def __call__(self, x: torch.Tensor) -> Work:
        """How a pass over latents [videos · frames, C, H, W] is to be done."""
        on_cpu = comfy.model_management.is_device_cpu(x.device)
        free = 0 if on_cpu else free_memory(self.patcher, x.device)
        self._tried, park, _ = self.plan(x.shape, x.element_size(), x.device, free)
        if self.ran_out is not None and x.numel() >= self.ran_out[0]:
            self._tried, park = min(self._tried, self.ran_out[1]), _has_its_own_memory(x.device)
        return work(self._tried, park, park and _can_be_locked(x.device))

    def plan(self, shape: Sequence[int], element: int, device: torch.device, free: int) -> Pass:
        """How a pass over latents [frames, C, H, W], of `element` bytes a number, fits into `free` bytes."""
        frames, _, height, width = shape
        one_map = self.channels * frames * height * width * element
        on_cpu = comfy.model_management.is_device_cpu(device)
        return plan_pass(self.setting, one_map, free, _has_its_own_memory(device), on_cpu)

    def retrying(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a pass of the UNet; where memory runs out, run it again in smaller chunks.

        A wrapper around the host's UNet, outside the one that extends it.
        """
        while True:
            self._tried = None
            try:
                # The host takes what it adds from lists in here, so a second try needs them whole.
                return executor(*(_copied(value) for value in args), **kwargs)
            except Exception as error:
                # What the host does its own way would only run out again.
                if not ran_out_of_memory(error) or self._tried is None or self._tried <= MIB:
                    raise
            # Only now, without the exception, which holds on to all that the pass had.
            self.ran_out = args[0].numel(), self._tried // 4
            comfy.model_management.soft_empty_cache()
            log.warning(
                "ExVideo ran out of memory and goes on in smaller chunks, of %d MiB: a smaller setting of memory "
                "at Apply ExVideo avoids the lost time.",
                self.ran_out[1] // MIB,
            )

    def prepared(
        self, positions: PositionLayers, executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Tell the host, which loads the model for sampling, what a pass takes: far less than it thinks.

        A wrapper around the host's preparation. It reckons by the number of images; so it is told of as many as take
        what a pass takes by its reckoning. Where the host's own layers do the work, its reckoning is right.
        """
        # Whoever cuts the clip into windows, the host or our own `Drifting`, says how long they are.
        places = ("context_handler", "sampler_calc_cond_batch_function")
        lengths = [getattr(model.model_options.get(place), "context_length", noise_shape[0]) for place in places]
        frames = min(noise_shape[0], *lengths)
        dtype = model.model.manual_cast_dtype or model.model.get_dtype()
        device = model.load_device
        weights = model.model_size() + sum(part.model_size() for part in model.get_nested_additional_models())
        free = int(comfy.model_management.get_total_memory(device)) - weights
        needed = self.plan([frames, *noise_shape[1:]], dtype.itemsize, device, free).needed
        one = max(int(model.model.memory_required([1, *noise_shape[1:]])), 1)
        options = model.model_options.get("transformer_options", {})
        if attention_is_patched(options) or positions.change_nothing_on(range(frames)):
            needed = frames * one
        if frames < noise_shape[0]:
            needed += WHOLE_CLIPS * math.prod(noise_shape)
        images = max(1, min(noise_shape[0], -(-needed // one)))
        return executor(model, [images, *noise_shape[1:]], *args, **kwargs)


def _has_its_own_memory(device: torch.device) -> bool:
    """Whether main memory is another than the device's."""
    return device.type not in ("cpu", "mps")


def _can_be_locked(device: torch.device) -> bool:
    """Whether the host locks pages of main memory, and lets a device copy from them without waiting."""
    management = comfy.model_management
    return getattr(management, "MAX_PINNED_MEMORY", 0) > 0 and bool(management.device_supports_non_blocking(device))


def _copied(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: list(entry) if isinstance(entry, list) else entry for key, entry in value.items()}
