"""How good a video of a scene is: numbers, since the right video is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from kornia.metrics import ssim

from dev.tiny.scenes import Scene, backdrop, render

LOST = 0.5
"""Error of place, in sides of the picture, where nothing is left of the shape."""
_FAINT = 0.06
"""What differs less from the background, in pixel values, is no shape."""
_LEFT = 0.25
"""Of the right shape's difference from the background, so much must be there to count as a shape."""


class Quality(NamedTuple):
    """Of each frame, [T]: peak signal-to-noise ratio in dB, structural similarity, and error of place in sides."""

    psnr: torch.Tensor
    ssim: torch.Tensor
    place: torch.Tensor


def quality(video: torch.Tensor, what: Scene, fps: float = 30.0) -> Quality:
    """Compare a video with the right one.

    Args:
        video: [T, side, side, 3] in [0, 1].
        what: the scene that its first frame shows.
        fps: frames a second.
    """
    frames, side = video.shape[:2]
    right = render(what, frames, side, fps)
    error = (video - right).square().mean((1, 2, 3)).clamp(min=1e-6)
    alike = ssim(video.movedim(-1, 1), right.movedim(-1, 1), window_size=7).mean((1, 2, 3))
    return Quality(-10 * error.log10(), alike, _place_error(video, right, backdrop(what, side)))


def astray(place: torch.Tensor, what: Scene, fps: float = 30.0) -> float:
    """Error of place by the way that the shape has gone, over the last fifth of a video: by how much its pace is wrong.

    Short videos and long ones can be compared by it: who misjudges a pace is the further off the longer it goes on.

    Args:
        place: error of place, [T], in sides.
    """
    gone = what.speed * torch.arange(len(place)) / fps
    end = len(place) - max(len(place) // 5, 1)
    return float((place[end:] / gone[end:]).mean())


def flicker(video: torch.Tensor, what: Scene, fps: float = 30.0) -> float:
    """Mean change from frame to frame by that of the right video: 1 is right, less is stiff, more flickers."""
    right = render(what, len(video), video.shape[1], fps)
    ours, theirs = ((each[1:] - each[:-1]).abs().mean() for each in (video, right))
    return float(ours / theirs)


def frechet(ours: torch.Tensor, right: torch.Tensor) -> float:
    """Fréchet distance between features of two sets of frames, each [N, D] (Heusel et al. 2017, eq. 6)."""
    means = ours.mean(0) - right.mean(0)
    first, second = torch.cov(ours.T.double()), torch.cov(right.T.double())
    # The trace of the root of a product is the sum of the roots of its eigenvalues.
    roots = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    return float(means.square().sum() + first.trace() + second.trace() - 2 * roots)


def by_parts(values: torch.Tensor, parts: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Means over some ranges of frames, [T] → one number each; NaN where the video is shorter."""
    return {name: float(values[begin:end].mean()) for name, (begin, end) in parts.items()}


def _place_error(video: torch.Tensor, right: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    (ours, there), (expected, full) = (_place(frames, background) for frames in (video, right))
    error = (ours - expected).norm(dim=-1).clamp(max=LOST)
    return torch.where(there < _LEFT * full, LOST, error)


def _place(frames: torch.Tensor, background: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Middle of what differs from the background, [T, 2], and how much differs, [T]."""
    differs = ((frames - background).abs().mean(-1) - _FAINT).clamp(min=0)
    along = (torch.arange(frames.shape[1]) + 0.5) / frames.shape[1]
    total = differs.sum((1, 2))
    middle = torch.stack([(differs.sum(axis) * along).sum(-1) for axis in (1, 2)], -1)
    return middle / total.clamp(min=1e-6)[:, None], total
