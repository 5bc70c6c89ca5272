"""A long clip denoised as a whole, in overlapped windows that lie elsewhere at each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from comfy.patcher_extension import WrappersMP

from ..layers import PositionLayers
from ..plan import drifting_windows, window_rows, window_weights

OnPart = Callable[[int, float], None]
"""Told of a step, and how much of it is done, from 0 to 1."""


class _Window(NamedTuple):
    """As `window_conditions` reads it: which frames of the clip, of how many, and their rows of the position table."""

    index_list: list[int]
    total_frames: int
    rows: list[int]


class Drifting:
    """The host's calculation of predictions, window by window, blended.

    In the place of the host's own context windows, so that it is asked by whoever calculates predictions: by patches
    that make one of their own as well (perturbed attention, say), too.

    Args:
        sigmas: noise levels of the run, by which a step is known.
        length, overlap: of a window in frames.
        loop: whether the first frame follows on the last.
        num_frames: F, rows of the extension's position table.
        on_part: told before each window; may raise to stop.
    """

    def __init__(self, sigmas: torch.Tensor, length: int, overlap: int, loop: bool, num_frames: int, on_part: OnPart):
        # By the name that the host's own context windows have for it; see `Memory.prepared`.
        self.context_length, self._on_part = length, on_part
        self._sigmas, self._overlap, self._loop, self._num_frames = sigmas, overlap, loop, num_frames

    def should_use_context(self, *_: Any) -> bool:
        return True

    def execute(
        self,
        calculate: Callable[..., list[torch.Tensor]],
        model: Any,
        conds: list[Any],
        x: torch.Tensor,
        sigma: torch.Tensor,
        options: dict[str, Any],
    ) -> list[torch.Tensor]:
        """The host's hook: predictions for a clip [T, 4, H/8, W/8], one for each of `conds`, of those that `calculate`
        makes for a window."""
        total = len(x)
        step = int((self._sigmas.to(sigma) - sigma.flatten()[0]).abs().argmin())
        windows = drifting_windows(total, self.context_length, self._overlap, step, self._loop)
        sums = [torch.zeros_like(x) for _ in conds]
        weights = x.new_zeros(total, 1, 1, 1)
        for number, frames in enumerate(windows):
            self._on_part(step, number / len(windows))
            rows = window_rows(frames, total, self._num_frames, self._loop)
            inner = {**options.get("transformer_options", {}), "context_window": _Window(frames, total, rows)}
            found = calculate(
                model,
                conds,
                x[frames],
                sigma[frames] if len(sigma) == total else sigma,
                {**options, "transformer_options": inner},
            )
            ends = self._loop and len(windows) > 1
            own = window_weights(len(frames), self._overlap, ends or frames[0] > 0, ends or frames[-1] < total - 1)
            weight = x.new_tensor(own).view(-1, 1, 1, 1)
            weights[frames] += weight
            for added, prediction in zip(sums, found, strict=True):
                added[frames] += weight * prediction
        return [added.div_(weights) for added in sums]


def with_drifting_windows(
    model: Any,
    sigmas: torch.Tensor,
    length: int,
    overlap: int,
    loop: bool,
    num_frames: int,
    on_part: OnPart = lambda step, share: None,
) -> Any:
    """A clone of a MODEL whose clips are denoised in windows; see `Drifting`."""
    clone = model.clone()
    clone.model_options["context_handler"] = Drifting(sigmas, length, overlap, loop, num_frames, on_part)
    return clone


def has_context_windows(model: Any) -> bool:
    """Whether the host's own context windows are on a MODEL."""
    return model.model_options.get("context_handler") is not None


def has_easy_cache(model: Any) -> bool:
    """Whether EasyCache is on a MODEL. It decides by one pass of the UNet whether to skip a step, and gives the next
    pass what it kept of that one; with windows, these are two windows of the clip."""
    return "easycache" in model.wrappers.get(WrappersMP.CALC_COND_BATCH, {})


def skips_steps(model: Any) -> bool:
    """Whether a cache of the host is on a MODEL that skips steps by what those before came to."""
    return has_easy_cache(model) or "lazycache" in model.wrappers.get(WrappersMP.PREDICT_NOISE, {})


def extension_length(model: Any) -> int | None:
    """Frames that an extended MODEL reaches; None without an extension."""
    parts: Sequence[Any] = model.get_nested_additional_models()
    return next((part.model.num_frames for part in parts if isinstance(part.model, PositionLayers)), None)
