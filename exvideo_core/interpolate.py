"""From frames to more frames: what lies between two of them, by optical flow, or by a model of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from kornia.filters import box_blur

from .flow import SMALLEST, Check, Flow, default_flow, nothing, warp
from .types import ExVideoError

Between = Callable[[torch.Tensor, torch.Tensor, Sequence[float]], Iterator[torch.Tensor]]
"""Two frames [H, W, 3], and times between 0 (the first) and 1 (the second) → the frame at each time."""

MAX_MULTIPLIER = 16
CUT = 0.8
"""What motion leaves unexplained of a frame, by how much the two frames vary at all, from which on a new scene begins:
pictures that have nothing to do with each other leave 0.85 at least, fast motion at most 0.7."""
NOISE = 0.015
"""Mean difference of pixels, in [0, 1], which is no new scene however little a dark one varies."""

_SHARPNESS = 40.0
"""How clearly the best explanation of a pixel wins over others."""
_ALONE = 0.06
"""Difference of a pixel between two frames from which on it is rather seen in one of them only."""


def interpolate(
    frames: Iterable[torch.Tensor],
    multiplier: int,
    between: Between,
    flow: Flow | None = None,
    loop: bool = False,
    check: Check = nothing,
) -> Iterator[torch.Tensor]:
    """Put multiplier − 1 frames between each two neighbours; those that come in go out bit for bit.

    Where a new scene begins, nothing lies between: the nearer of the two frames is held.

    Args:
        frames: [H, W, 3] each, T of them, one at a time.
        multiplier: 1 … `MAX_MULTIPLIER`.
        between: what lies between two frames.
        flow: to tell a new scene from a fast motion; the faster one there is by default.
        loop: whether the first frame follows on the last, so that something lies between these two as well.
        check: called now and then while a new scene is looked for; what it raises ends the work.

    Yields:
        (T − 1) · multiplier + 1 frames; T · multiplier in a loop.

    Raises:
        ExVideoError: a multiplier out of range.
    """
    check_multiplier(multiplier)
    times = [step / multiplier for step in range(1, multiplier)]

    def middle(before: torch.Tensor, after: torch.Tensor) -> Iterator[torch.Tensor]:
        if times and is_cut(before, after, flow or default_flow(), check):
            yield from (before if time < 0.5 else after for time in times)
        elif times:
            yield from between(before, after, times)

    first: torch.Tensor | None = None
    before: torch.Tensor | None = None
    for frame in frames:
        if before is None:
            first = frame
        else:
            yield from middle(before, frame)
        yield frame
        before = frame
    if loop and first is not None and before is not None:
        yield from middle(before, first)


def check_multiplier(multiplier: int) -> None:
    """Raise ExVideoError unless a multiplier is in range."""
    if not 1 <= multiplier <= MAX_MULTIPLIER:
        raise ExVideoError(f"The multiplier of frames is 1 to {MAX_MULTIPLIER}, got {multiplier}.")


def interpolated_length(frames: int, multiplier: int, loop: bool = False) -> int:
    """Frames that come out of `interpolate`, of so many that go in."""
    return frames * multiplier if loop or not frames else (frames - 1) * multiplier + 1


def is_cut(first: torch.Tensor, second: torch.Tensor, flow: Flow, check: Check = nothing) -> bool:
    """Whether another scene begins between two frames [H, W, 3]: no motion explains one by the other."""
    before, after = (frame.float().movedim(-1, 0) for frame in (first, second))
    allowed = max(NOISE, CUT * (_variation(before) + _variation(after)) / 2)
    # Most neighbours are too much alike to need a look at how things move.
    if _variation(before - after) <= allowed:
        return False
    ways = ((before, after), (after, before))
    return all(_variation(one - warp(other, _flow(one, other, flow, check))) > allowed for one, other in ways)


class FlowBetween:
    """What lies between two frames, by optical flow in both directions.

    For each pixel four motions are weighed, which the flows of both directions suggest, and for each of them three
    explanations: the pixel is seen in both frames, or in one of them only, and covered in the other. What is seen in
    both should look the same there; what is covered has no way back.

    Args:
        device: to warp and blend on.
        flow: from one frame to another.
        check: called now and then; what it raises ends the work.
    """

    def __init__(self, device: torch.device | str = "cpu", flow: Flow | None = None, check: Check = nothing):
        self._device, self._flow, self._check = torch.device(device), flow or default_flow(), check

    def __call__(self, first: torch.Tensor, second: torch.Tensor, times: Sequence[float]) -> Iterator[torch.Tensor]:
        """Frames [H, W, 3] where `first` is, in its type."""
        before, after = (frame.to(self._device).float().movedim(-1, 0) for frame in (first, second))
        pair = _Pair.of(before, after, self._flow, self._check)
        for time in times:
            yield pair.at(time, self._check).movedim(0, -1).to(first)


class _Pair(NamedTuple):
    """Two frames [3, H, W], the flows from each to the other [2, H, W], and how far its pixels are seen in the other,
    0 … 1, [1, H, W]."""

    first: torch.Tensor
    second: torch.Tensor
    forward: torch.Tensor
    backward: torch.Tensor
    seen_later: torch.Tensor
    seen_before: torch.Tensor

    @classmethod
    def of(cls, first: torch.Tensor, second: torch.Tensor, flow: Flow, check: Check) -> _Pair:
        forward, backward = _flow(first, second, flow, check), _flow(second, first, flow, check)
        return cls(first, second, forward, backward, _seen(forward, backward), _seen(backward, forward))

    def at(self, time: float, check: Check) -> torch.Tensor:
        """The frame at a time, [3, H, W]."""
        scores, colours = [], []
        for motion in self._motions(time):
            check()
            to_first, to_second = -time * motion, (1 - time) * motion
            early, late = warp(self.first, to_first, "bicubic"), warp(self.second, to_second, "bicubic")
            strange_early = _other(warp(self.forward, to_first), motion)
            strange_late = _other(warp(self.backward, to_second), -motion)
            apart = _blur((early - late).abs().mean(0, keepdim=True), 5)
            scores += [
                apart + (strange_early + strange_late) / 2,
                _ALONE + strange_early + 0.1 * warp(self.seen_later, to_first),
                _ALONE + strange_late + 0.1 * warp(self.seen_before, to_second),
            ]
            colours += [torch.lerp(early, late, time), early, late]
        shares = torch.softmax(-_SHARPNESS * torch.stack(scores), 0)
        return (shares * torch.stack(colours)).sum(0).clamp(0, 1)

    def _motions(self, time: float) -> list[torch.Tensor]:
        """From the first frame to the second, of pixels at a time between: by the flow at the same place, and by that
        of the place they come from, or go to."""
        coming, going = self.forward, -self.backward
        for _ in range(2):
            coming = warp(self.forward, -time * coming)
            going = -warp(self.backward, (1 - time) * going)
        return [self.forward, -self.backward, coming, going]


def _flow(first: torch.Tensor, second: torch.Tensor, flow: Flow, check: Check) -> torch.Tensor:
    return torch.zeros_like(first[:2]) if min(first.shape[1:]) < SMALLEST else flow(first, second, check)


def _variation(picture: torch.Tensor) -> float:
    """Mean deviation of pixels from their mean, so that no brightness counts, and without what is noise."""
    smooth = _blur(picture, 5)
    return float((smooth - smooth.mean()).abs().mean())


def _seen(there: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """How well the way there and back leads to where it began: pixels that are covered there have none."""
    back = warp(back, there)
    allowed = 0.01 * (there.square().sum(0) + back.square().sum(0)) + 0.5
    return torch.exp(-(there + back).square().sum(0) / allowed)[None]


def _other(flow: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
    """How much a flow, found where a motion leads, is another than that motion."""
    return 0.01 * _blur((flow - motion).square().sum(0).clamp(max=9)[None], 3)


def _blur(values: torch.Tensor, side: int) -> torch.Tensor:
    return box_blur(values[None], side, border_type="replicate")[0]
