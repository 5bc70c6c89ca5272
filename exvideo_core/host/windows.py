"""The host's context windows on an extended model: a clip denoised in overlapping parts, each a call of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..layers import FRAME_NUMBERS, PositionLayers
from ..plan import window_positions
from ..unet import attention_is_patched


def one_noise_level(executor: Any, x: Any, timestep: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
    """Tell a context handler the step's noise level once, instead of once a frame, which 0.3.75 stumbles over.

    A wrapper around the host's prediction of noise; `window_conditions` gives each frame its own again.
    """
    if "context_handler" in options:
        timestep = timestep[:1]
    return executor(x, timestep, options, *args, **kwargs)


def window_conditions(
    positions: PositionLayers, executor: Any, model: Any, conds: Any, x: Any, timestep: Any, options: Any, *args: Any
) -> Any:
    """Give each context window the conditions of its own frames, and its frames their place in the clip.

    A wrapper around the host's calculation of predictions. The host cuts latents into windows, but for SVD it leaves
    the image latents whole (0.3.75), or does not count the frame that it puts before a window (later versions); and
    every window would begin at the first position, as if it were the start of the clip.

    Args:
        positions: the new parts of the model.
        executor, model, conds, x, timestep, options, args: the host's; x is [frames of the window, 4, H/8, W/8].
    """
    timestep = timestep.expand(len(x))
    window = options.get("transformer_options", {}).get("context_window")
    frames = [] if window is None else list(window.index_list)
    # The frame before the window, of later versions; none, or a negative one, is none.
    anchor = getattr(window, "causal_anchor_index", None)
    leads_in = anchor is not None and anchor >= 0
    if leads_in:
        frames = [anchor, *frames]
    if not frames or len(frames) != len(x):
        return _apart(positions, range(len(x)), executor, model, conds, x, timestep, options, *args)

    clip = max(getattr(window, "total_frames", 0), *(len(value.cond) for value in _tensors(conds)))
    # Our own windows (see `drifting`) know which rows theirs are.
    rows = getattr(window, "rows", None) or window_positions(frames, clip, positions.num_frames, leads_in)
    options = {**options, "transformer_options": {**options["transformer_options"], FRAME_NUMBERS: rows}}
    conds = [_cut(entries, frames, clip) for entries in conds]
    return _apart(positions, rows, executor, model, conds, x, timestep, options, *args)


def _apart(
    positions: PositionLayers, rows: Sequence[int], executor: Any, model: Any, conds: Any, *args: Any
) -> list[torch.Tensor]:
    """One prediction after the other: together they would take twice the memory, and a long clip gains no time.

    Where others have put something into the host's attention, the host decides: it may look from one prediction to
    the other, as NAG does. And where it has several GPUs, which make a prediction each.
    """
    _, _, options, *_ = args
    by_host = "multigpu_clones" in options or attention_is_patched(options.get("transformer_options", {}))
    if by_host or positions.change_nothing_on(rows):
        return executor(model, conds, *args)
    # Each keeps its place in the list, by which patches tell the conditional one from the other.
    return [
        executor(model, [entries if i == own else None for i, entries in enumerate(conds)], *args)[own]
        for own in range(len(conds))
    ]


def _tensors(conds: Any) -> Iterator[Any]:
    for entries in conds:
        for entry in entries or ():
            yield from (value for value in entry["model_conds"].values() if _is_tensor(value))


def _is_tensor(value: Any) -> bool:
    tensor = getattr(value, "cond", None)
    return isinstance(tensor, torch.Tensor) and tensor.ndim > 0


def _cut(entries: Any, frames: Sequence[int], clip: int) -> Any:
    """The conditions of one prediction, cut from those of the clip to those of one window."""
    if entries is None:
        return None

    def of_window(name: str, value: Any) -> Any:
        if name == "num_video_frames":
            return value._copy_with(len(frames))
        if _is_tensor(value) and len(value.cond) == clip != len(frames):
            return value._copy_with(value.cond[list(frames)])
        return value

    return [
        {**entry, "model_conds": {name: of_window(name, value) for name, value in entry["model_conds"].items()}}
        for entry in entries
    ]
