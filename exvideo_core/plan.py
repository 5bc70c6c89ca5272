"""The integer geometry of long clips: which frames go together. No tensors here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .types import ExVideoError


class Window(NamedTuple):
    """Frames start … stop − 1 of a clip, worked on together."""

    start: int
    stop: int

    @property
    def frames(self) -> int:
        return self.stop - self.start


def overlapped_windows(frames: int, window: int, overlap: int) -> list[Window]:
    """Cut a clip into windows that share `overlap` frames with their neighbours; the last may be shorter.

    Args:
        frames: length of the clip, ≥ 1.
        window: longest window in frames, ≥ 1.
        overlap: frames shared by neighbours, 0 ≤ overlap < window.

    Returns:
        Windows in order. Together they cover every frame, and none lies wholly inside another.

    Raises:
        ExVideoError: a number outside its range.
    """
    if frames < 1:
        raise ExVideoError("There are no frames to work on: connect a clip of at least 1 frame.")
    if window < 1:
        raise ExVideoError(f"A window needs at least 1 frame, got window = {window}.")
    if not 0 <= overlap < window:
        raise ExVideoError(f"Windows of {window} frames can share 0 to {window - 1} of them, got overlap = {overlap}.")
    starts = range(0, max(frames - overlap, 1), window - overlap)
    return [Window(start, min(start + window, frames)) for start in starts]


def blend_weights(window: Window, frames: int) -> list[int]:
    """How much each frame of a window counts against its neighbours': a ramp up, a ramp down.

    At an end of the clip, where no neighbour follows, the ramp is left out. Weights are whole numbers ≥ 1;
    the caller divides by their sum over all windows.
    """
    n = window.frames
    rising = [n] * n if window.start == 0 else list(range(1, n + 1))
    falling = [n] * n if window.stop == frames else list(range(n, 0, -1))
    return [min(up, down) for up, down in zip(rising, falling, strict=True)]


def window_positions(frames: Sequence[int], clip: int, num_frames: int, leads_in: bool = False) -> list[int]:
    """Which row of the position table each frame of one window takes, where a clip is denoised in windows.

    Frames keep their place in the clip where the table reaches the clip's end. Where it does not, every window counts
    from its own start.

    Args:
        frames: the window's frames by their number in the clip; of a circle, they may wrap around.
        clip: length of the whole clip in frames.
        num_frames: F, rows of the table.
        leads_in: the first of `frames` lies before the window and is dropped after; it takes no row of its own.
    """
    if clip <= num_frames:
        return list(frames)
    return [max(i - leads_in, 0) for i in range(len(frames))]


def chunks(count: int, bytes_each: int, budget: int | None, halo: int = 0) -> list[slice]:
    """Cut work on `count` entries so that a part stays within a budget; the parts differ by one entry at most.

    Args:
        count: entries, ≥ 1.
        bytes_each: working memory that one entry takes.
        budget: bytes for a part at once; None for no limit. At least one entry is worked on.
        halo: entries that a part needs beside its own.

    Returns:
        Slices in order, which cover 0 … count − 1.
    """
    largest = count if budget is None else max(budget // max(bytes_each, 1) - halo, 1)
    parts = -(-count // largest)
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


MIB = 2**20
BUDGETS: Mapping[str, tuple[int, int]] = {
    "auto": (64 * MIB, 2048 * MIB),
    "fast": (2048 * MIB, 8192 * MIB),
    "balanced": (512 * MIB, 512 * MIB),
    "low": (64 * MIB, 64 * MIB),
}
"""Least and greatest working memory, in bytes, of each way to go about a pass."""
CPU_BUDGET = 64 * MIB
"""What a processor's caches like best: more is slower there."""
HELD_MAPS = 6
"""Maps of the UNet's first width that a pass has to hold at its worst, the end of the last level: the two skips still
to come, the three maps' width that go into a ResNet block, and the one that comes out."""


def held_bytes(frames: int, height: int, width: int, channels: int, element: int) -> int:
    """Bytes that one pass of the UNet over a clip holds at least, beside its weights.

    Args:
        frames: of all videos in the batch.
        height, width: of the latents.
        channels: of the UNet's first level, 320 for SVD.
        element: bytes of a number.
    """
    return HELD_MAPS * channels * frames * height * width * element


def check_setting(memory: str) -> tuple[int, int]:
    """The entry of `BUDGETS` of this name; ExVideoError lists the names there are."""
    if memory not in BUDGETS:
        raise ExVideoError(f"There is no memory setting {memory}: choose {', '.join(BUDGETS)}.")
    return BUDGETS[memory]


def working_budget(memory: str, held: int, free: int, on_cpu: bool = False) -> int:
    """Bytes that a pass may take beside what it holds, within what is free.

    Args:
        memory: a name in `BUDGETS`.
        held: see `held_bytes`.
        free: bytes that the device has, weights apart.
        on_cpu: the device is the processor itself.

    Raises:
        ExVideoError: no such name.
    """
    least, most = check_setting(memory)
    if on_cpu and memory == "auto":
        return CPU_BUDGET
    # A tenth stays for what kernels allocate themselves, and for what fragmentation takes.
    return max(least, min(most, free * 9 // 10 - held))
