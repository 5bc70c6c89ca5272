"""The integer geometry of long clips: which frames go together. No tensors here."""

from __future__ import annotations

from collections.abc import Sequence
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
