"""Memory: what the host's devices have, and how a pass over a long clip is made to fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch

from ..budget import MIB, Pass, plan_pass
from ..chunked import Work
from ..layers import PositionLayers
from ..unet import attention_is_patched
from .telling import warn
from .weights import Lent, at_hand

OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
_OF_DEVICE = getattr(torch, "AcceleratorError", OUT_OF_MEMORY)
WHOLE_CLIPS = 7 * 4
"""Bytes for each number of a clip's latents that lie on the device while it is denoised in windows: three times in
float32 in the sampler, twice as conditions, twice as predictions."""


def work(budget: int | None, park: bool = False, pin: bool = False) -> Work:
    """Work on the host's modules, which an interrupt ends before the next chunk."""
    return Work(budget, Lent, at_hand, park, pin, comfy.model_management.throw_exception_if_processing_interrupted)


def free_memory(patcher: Any, device: torch.device) -> int:
    """Bytes of a device that a model's work can have; newer hosts count weights which they give up when it is short."""
    ask = getattr(patcher, "get_free_memory", comfy.model_management.get_free_memory)
    return int(ask(device))


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device has no more memory; newer hosts know more of these."""
    by_host = getattr(comfy.model_management, "is_oom", None)
    if by_host is not None and by_host(error):  # clears away what some of them leave behind
        return True
    # Apple's GPUs say it by an error of no class of its own.
    told = isinstance(error, (_OF_DEVICE, RuntimeError)) and "out of memory" in str(error)
    return told or isinstance(error, OUT_OF_MEMORY)


@dataclass
class Memory:
    """How the passes of one extended model go about memory.

    Attributes:
        setting: a name in `budget.BUDGETS`.
        channels: of the UNet's first level.
        patcher: a model on the device, of which newer hosts know how much memory it can have, weights that they would
            give up for it included.
        ran_out: numbers in the latents of a pass in which memory ran out, and bytes that passes as large may work in
            since; None before it ever did.
    """

    setting: str
    channels: int
    patcher: Any = None
    ran_out: tuple[int, int] | None = None
    _tried: dict[torch.device, int] = field(default_factory=dict)
    """Bytes that the pass under way on a device works in; none where it is not ours."""
    _has_locked: bool = False
    """Whether main memory may have been page-locked in this sampling."""

    def __call__(self, x: torch.Tensor) -> Work:
        """How a pass over latents [videos · frames, C, H, W] is to be done."""
        on_cpu = comfy.model_management.is_device_cpu(x.device)
        free = 0 if on_cpu else free_memory(self.patcher, x.device)
        size, park, _ = self.plan(x.shape, x.element_size(), x.device, free)
        if self.ran_out is not None and x.numel() >= self.ran_out[0]:
            size, park = min(size, self.ran_out[1]), _has_its_own_memory(x.device)
        self._tried[x.device] = size
        locks = park and _can_be_locked(x.device)
        self._has_locked |= locks
        return work(size, park, locks)

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
        device, before = args[0].device, self.ran_out
        while True:
            self._tried.pop(device, None)
            try:
                # The host takes what it adds from lists in here, so a second try needs them whole.
                whole = {name: _copied(value) for name, value in kwargs.items()}
                return executor(*(_copied(value) for value in args), **whole)
            except Exception as error:
                tried = self._tried.get(device, 0)
                # What the host does its own way would only run out again.
                if not ran_out_of_memory(error) or tried <= MIB:
                    # Nothing was learned: what took the memory may be gone next time.
                    self.ran_out = before
                    raise
            # Only now, without the exception, which holds on to all that the pass had.
            self.ran_out = args[0].numel(), tried // 4
            comfy.model_management.soft_empty_cache()
            advice = "" if self.setting == "low" else ": a smaller setting of memory at Apply ExVideo saves the time"
            warn(f"ExVideo ran out of memory and goes on in smaller chunks, of {self.ran_out[1] // MIB} MiB{advice}.")

    def give_back(self, _model: Any) -> None:
        """Let go of main memory that was page-locked for skip connections, 1.6 GiB for 128 frames at 512×512: torch
        would keep it for the next that wants some.

        A callback at the end of the host's sampling.
        """
        if self._has_locked:
            self._has_locked = False
            _give_back_locked_memory()

    def prepared(
        self,
        positions: PositionLayers,
        executor: Any,
        model: Any,
        noise_shape: Any,
        conds: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Tell the host, which loads the model for sampling, what a pass takes: far less than it thinks.

        A wrapper around the host's preparation. It reckons by the number of images; so it is told of as many as take
        what a pass takes by its reckoning. Where the host's own layers do the work, its reckoning is right.
        """
        # Whoever cuts the clip into windows, the host or our own `Drifting`, says how long they are.
        handler = model.model_options.get("context_handler")
        frames = min(noise_shape[0], getattr(handler, "context_length", noise_shape[0]))
        device = model.load_device
        beside = [part for part in model.get_nested_additional_models() if part.load_device == device]
        weights = sum(part.model_size() for part in (model, *beside))
        free = int(comfy.model_management.get_total_memory(device)) - weights
        needed = self.plan([frames, *noise_shape[1:]], computes_in(model).itemsize, device, free).needed
        one = max(int(model.model.memory_required([1, *noise_shape[1:]])), 1)
        options = model.model_options.get("transformer_options", {})
        by_host = attention_is_patched(options) or _has_several_tokens(conds)
        if by_host or positions.change_nothing_on(range(frames)):
            needed = frames * one
        if frames < noise_shape[0]:
            needed += WHOLE_CLIPS * math.prod(noise_shape)
        images = max(1, min(noise_shape[0], -(-needed // one)))
        return executor(model, [images, *noise_shape[1:]], conds, *args, **kwargs)


def _give_back_locked_memory() -> None:
    empty = getattr(torch._C, "_host_emptyCache", None)  # of torch 2.5 and newer
    if empty is not None:
        empty()


def computes_in(model: Any) -> torch.dtype:
    """The precision that a MODEL computes in, which nodes of the host can set."""
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()


def _has_several_tokens(conds: Any) -> bool:
    """Whether conditions, lists of the host's by name, have more than a single image token."""
    tokens = (entry.get("cross_attn") for entries in (conds or {}).values() for entry in entries)
    return any(token is not None and token.shape[1] > 1 for token in tokens)


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
