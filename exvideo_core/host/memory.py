"""Memory: what the host's devices have, and how a pass over a long clip is made to fit."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.ops
import torch

from ..chunked import Work
from ..plan import BUDGETS, MIB, held_bytes, working_budget

log = logging.getLogger(__name__)
OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


def affine(module: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a module of the host as they act on x: patched, cast, and where x is."""
    weight, bias = comfy.ops.cast_bias_weight(module, x)
    return weight, bias


@dataclass
class Memory:
    """How the passes of one extended model go about memory.

    Attributes:
        setting: a name in `plan.BUDGETS`.
        channels: of the UNet's first level.
        most: bytes of working memory that have proved too many are above this; None before anything ran out.
    """

    setting: str
    channels: int
    most: int | None = None

    def __call__(self, x: torch.Tensor) -> Work:
        """How much may be done at once in a pass over latents [videos · frames, C, H, W]."""
        frames, _, height, width = x.shape
        on_cpu = comfy.model_management.is_device_cpu(x.device)
        held = held_bytes(frames, height, width, self.channels, x.element_size())
        free = 0 if on_cpu else int(comfy.model_management.get_free_memory(x.device))
        budget = working_budget(self.setting, held, free, on_cpu)
        return Work(budget if self.most is None else min(budget, self.most), affine)

    def retrying(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a pass of the UNet; where memory runs out, run it again in smaller chunks.

        A wrapper around the host's UNet, outside the one that extends it.
        """
        while True:
            tried = self(args[0]).budget or 0
            try:
                # The host takes what it adds from lists in here, so a second try needs them whole.
                return executor(*(_copied(value) for value in args), **kwargs)
            except OUT_OF_MEMORY:
                if tried <= MIB:
                    raise
                self.most = tried // 4
                comfy.model_management.soft_empty_cache()
                log.warning(
                    "ExVideo ran out of memory and goes on in smaller chunks, of %d MiB: a smaller setting of memory "
                    "at Apply ExVideo avoids the lost time.",
                    self.most // MIB,
                )

    def prepared(self, executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        """Tell the host, which loads the model for sampling, what a pass takes: far less than it thinks.

        A wrapper around the host's preparation. It reckons by the number of images; so it is told of as many as take
        what a pass takes by its reckoning.
        """
        frames, _, height, width = noise_shape
        dtype = model.model.manual_cast_dtype or model.model.get_dtype()
        needed = held_bytes(frames, height, width, self.channels, dtype.itemsize) + BUDGETS[self.setting][0]
        one = max(model.model.memory_required([1, *noise_shape[1:]]), 1)
        images = max(1, min(frames, -(-needed // int(one))))
        return executor(model, [images, *noise_shape[1:]], *args, **kwargs)


def _copied(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: list(entry) if isinstance(entry, list) else entry for key, entry in value.items()}
