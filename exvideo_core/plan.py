"""The integer geometry of long clips: which frames go together. No tensors here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .types import ExVideoError

_LOOP = 16
"""Frames of a loop that are decoded at once, if so many are wanted, however few it has."""


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


def loop_window(frames: int, window: int) -> int:
    """How many frames of a loop are decoded at once, where `window` are wanted: once round is enough to see.

    A short loop goes round more than once, for the decoder's layers look at frames on either side.
    """
    return min(window, max(frames, _LOOP))


def blend_weights(window: Window, frames: int, centred: bool = False) -> list[int]:
    """How much each frame of a window counts against its neighbours': a ramp up, a ramp down.

    At an end of the clip, where no neighbour follows, the ramp is left out. Weights are whole numbers ≥ 1;
    the caller divides by their sum over all windows.

    Args:
        window: one of `overlapped_windows`.
        frames: length of the clip.
        centred: a ramp of 1, 3, 5, …, which begins at the edge of the window, half a frame before its first; else one
            of 1, 2, 3, …, as the ExVideo reference, which begins a whole frame before. Where 4 frames are shared, the
            first counts 1/8 or 1/5.
    """
    n = window.frames
    ramp = [2 * i + 1 if centred else i + 1 for i in range(n)]
    rising = ramp[-1:] * n if window.start == 0 else ramp
    falling = ramp[-1:] * n if window.stop == frames else ramp[::-1]
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


class Segment(NamedTuple):
    """A part of a chain, sampled at once.

    Attributes:
        number: 0, 1, 2, …
        frames: of the clip.
        pinned: how many of them, at the beginning, the segment before has made.
        seed: of its noise.
    """

    number: int
    frames: Window
    pinned: int
    seed: int

    @property
    def new(self) -> Window:
        """The frames that this segment adds to the clip."""
        return Window(self.frames.start + self.pinned, self.frames.stop)


def chain_segments(total: int, length: int, overlap: int, seed: int) -> list[Segment]:
    """Cut a clip into segments that are sampled one after the other, each going on from the end of the one before.

    Args:
        total: frames of the clip, ≥ 1.
        length: of a segment in frames, ≥ 2 where one is not all.
        overlap: frames that a segment is given from the one before, 1 ≤ overlap < length; any below `length` where
            one segment is all. The last is given more where fewer new ones are left, so that it is as long as the
            others: a short clip comes out otherwise, and its join is seen.
        seed: of the first segment. The others' are spread over all 64 bits.

    Returns:
        Segments in order, whose new frames are the clip's, each once.

    Raises:
        ExVideoError: a number outside its range.
    """
    if length == 1 and total > 1:  # no overlap would do
        raise ExVideoError(
            f"A chain of {total} frames needs segments of at least 2 frames, one to go on from and a new one, got "
            "segment_frames = 1: raise segment_frames."
        )
    windows = overlapped_windows(total, length, overlap)
    if overlap == 0 and len(windows) > 1:
        raise ExVideoError(
            f"A chain of {total} frames in segments of {length} needs an overlap of 1 to {length - 1} frames, got 0: "
            "without any, a segment would not know what to go on from."
        )
    segments, made = [], 0
    for number, (_, stop) in enumerate(windows):
        start = max(stop - length, 0)
        segments.append(
            Segment(number, Window(start, stop), made - start, (seed + number * 0x9E3779B97F4A7C15) % 2**64)
        )
        made = stop
    return segments


class Draw(NamedTuple):
    """Which frames a pinned one draws to itself.

    Attributes:
        pin: the pinned frame.
        frames: those before or after it, the nearest first.
        weights: how much each is drawn, between 0 and 1.
    """

    pin: int
    frames: range
    weights: list[float]


def draws(total: int, pinned: Sequence[int], fade: int) -> list[Draw]:
    """Which frames of a clip are drawn to which pinned ones: up to `fade` on either side, none beyond the next pin.

    Args:
        total: frames of the clip.
        pinned: numbers of the pinned ones.
        fade: ≥ 0.

    Returns:
        Frames that are drawn from both sides are by no more than 1 in all.
    """
    found = []
    for pin in pinned:
        for step in (1, -1):
            between = [abs(other - pin) - 1 for other in pinned if (other - pin) * step > 0]
            reach = min([fade, *between])
            end = min(max(pin + step * (reach + 1), -1), total)
            frames = range(pin + step, end, step)
            weights = [math.cos(math.pi / 2 * (i + 1) / (reach + 1)) ** 2 for i in range(len(frames))]
            if frames:
                found.append(Draw(pin, frames, weights))
    return found


def window_size(total: int, length: int, overlap: int, loop: bool = False) -> tuple[int, int]:
    """Length and overlap of the windows of a clip. In a loop they are at most three quarters of it, so that each end
    of one lies within another: a window that held the whole circle would leave it open. Such windows share at most half
    of their frames, for with more a short loop would take many times the work of a long one.

    Args:
        total, length, overlap, loop: as of `drifting_windows`.

    Raises:
        ExVideoError: a number outside its range.
    """
    overlapped_windows(total, length, overlap)  # checks the numbers
    if loop:
        shortened = min(length, max(total * 3 // 4, 1))
        if shortened < length:
            length, overlap = shortened, min(overlap, shortened // 2)
    return length, min(overlap, length - 1)


def drifting_windows(total: int, length: int, overlap: int, step: int, loop: bool = False) -> list[list[int]]:
    """Cut a clip into overlapped windows whose edges lie elsewhere at each step, so that no edge is seen in the end.

    Args:
        total: frames of the clip, ≥ 1.
        length: of a window in frames, ≥ 1.
        overlap: frames that neighbours share at least, 0 ≤ overlap < length.
        step: number of the sampling step.
        loop: whether the first frame follows on the last.

    Returns:
        The frames of each window by their numbers. They cover every frame. In a loop all are of the same length and
        may go over the end; else so are all, but a clip that is shorter than a window is one window.

    Raises:
        ExVideoError: a number outside its range.
    """
    windows = overlapped_windows(total, length, overlap)  # checks the numbers
    if total <= length:
        return [list(range(total))]
    stride = length - overlap
    # By the golden section no shift comes near one of the last few steps.
    shift = round(step * 0.6180339887 * stride) % stride
    if loop:
        starts = range(shift, shift + total, stride)
        return [[(start + i) % total for i in range(length)] for start in starts]
    last = windows[-1].stop - length
    starts_clipped = sorted({min(max(start, 0), last) for start in range(shift - stride, total - overlap, stride)})
    return [list(range(start, start + length)) for start in starts_clipped]


def window_rows(frames: Sequence[int], clip: int, num_frames: int, loop: bool = False) -> list[int]:
    """Which row of the position table each frame of a drifting window takes.

    Frames keep their place where the table reaches the clip's end. Where it does not, a window takes its place as far
    as there are rows, and the table's last rows beyond: so that none but the first begins at row 0, which to the model
    means the picture that the clip starts from. In a loop no frame is the first, so all windows take the last rows. A
    window of as many frames as there are rows takes all of them.

    Args:
        frames: the window's, by their number in the clip.
        clip: length of the whole clip in frames.
        num_frames: F, rows of the table.
        loop: whether the first frame follows on the last.
    """
    if clip <= num_frames and not loop:
        return list(frames)
    last = num_frames - len(frames)
    start = last if loop else min(frames[0], last)
    return [start + i for i in range(len(frames))]


def window_weights(length: int, overlap: int, rises: bool, falls: bool) -> list[float]:
    """How much each frame of a window counts against its neighbours': a smooth step up, and one down (sin²).

    Args:
        length: of the window in frames.
        overlap: frames of each step.
        rises, falls: whether a neighbour comes before, and after.
    """

    def ramp(i: int) -> float:
        return math.sin(math.pi / 2 * (i + 1) / (overlap + 1)) ** 2 if i < overlap else 1.0

    return [min(ramp(i) if rises else 1.0, ramp(length - 1 - i) if falls else 1.0) for i in range(length)]
