"""Dense optical flow between two frames: by OpenCV where the host has it, else by Lucas and Kanade's method.

OpenCV comes in four packages that overwrite one another, so this pack asks for none of them; most hosts have one. What
else has a flow brings packages along that can change a host's numpy and scipy, and the method is short with kornia.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
from kornia.color import rgb_to_grayscale
from kornia.filters import gaussian_blur2d
from kornia.geometry.transform import pyrdown, remap, resize

Check = Callable[[], None]
"""Called now and then in long work; what it raises ends that."""

SMALLEST = 16
"""Pixels of a side below which nothing is to be found."""

_WINDOW = 15
"""Pixels of a side of the surroundings that are taken to move as the pixel in their middle does."""
_STEPS = 4
"""At each size of the frames."""
_STIFFNESS = 1e-3
"""How much the motion found so far counts beside what is seen, of a contrast of about 1; with nothing seen it stays."""


def default_flow() -> Flow:
    """The faster of those there are; both find the same motion, to a fraction of a pixel where there is texture."""
    return lucas_kanade_flow if _opencv() is None else opencv_flow


def nothing() -> None:
    """A `Check` that lets all go on."""


class Flow(Protocol):
    """From two frames [3, H, W] in [0, 1] to how many pixels each of the first moves, right and down, [2, H, W]."""

    def __call__(self, first: torch.Tensor, second: torch.Tensor, check: Check = nothing, /) -> torch.Tensor: ...


def opencv_flow(first: torch.Tensor, second: torch.Tensor, check: Check = nothing) -> torch.Tensor:
    """By dense inverse search (Kroeger et al. 2016), in one go."""
    check()
    cv2 = _opencv()
    before, after = ((255 * _grey(frame)).round().byte().cpu().numpy() for frame in (first, second))
    # Not kept between calls: it would begin with the flow found last.
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return torch.from_numpy(search.calc(before, after, None)).movedim(-1, 0).to(first.device)


def lucas_kanade_flow(first: torch.Tensor, second: torch.Tensor, check: Check = nothing) -> torch.Tensor:
    """By iterated Lucas-Kanade (Le Besnerais and Champagnat 2005), from small frames to large ones (Bouguet 2000).

    On the frames' device, on frames of even brightness and contrast.
    """
    sizes = [torch.stack([even_grey(frame) for frame in (first, second)])[:, None]]
    while min(sizes[-1].shape[2:]) >= 2 * SMALLEST:
        sizes.append(pyrdown(sizes[-1]))
    flow = torch.zeros_like(sizes[-1][:, 0])
    for before, after in reversed(sizes):
        height, width = before.shape[1:]
        larger = torch.tensor([width / flow.shape[2], height / flow.shape[1]]).to(flow)
        flow = larger[:, None, None] * resize(flow[None], (height, width))[0]
        for _ in range(_STEPS):
            check()
            flow = _improved(flow, before, after)
    return flow


def even_grey(frame: torch.Tensor, deviation: float = 12.0) -> torch.Tensor:
    """A frame [3, H, W] without colours, and without the brightness and the contrast of each pixel's surroundings,
    against changes of light: [H, W]."""
    grey = _grey(frame)

    def around(values: torch.Tensor) -> torch.Tensor:
        # The kernel's reflection at the edges may not reach over the picture.
        side = min(49, 2 * ((min(values.shape) - 1) // 2) + 1)
        return gaussian_blur2d(values[None, None], (side, side), (deviation, deviation))[0, 0]

    level = grey - around(grey)
    return level / (around(level.square()) + 1e-3).sqrt()


def warp(picture: torch.Tensor, by: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """What a picture [C, H, W] shows at each pixel's place moved by [2, H, W] pixels; edges go on outside."""
    x, y = _places(by)
    return remap(picture[None], x[None], y[None], mode=mode, padding_mode="border", align_corners=True)[0]


def _improved(flow: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The motion of each pixel's window that explains best, by least squares, how one frame [1, H, W] becomes the
    other, with what a flow leaves unexplained taken as linear. Pixels that leave the picture have no say."""
    there = warp(after, flow)
    down, right = torch.gradient(there, dim=(1, 2))
    missing = before - there + right * flow[:1] + down * flow[1:]
    products = torch.cat([right * right, right * down, down * down, right * missing, down * missing])
    inside = [(place >= 0) & (place <= side - 1) for place, side in zip(_places(flow), flow.shape[:0:-1], strict=True)]
    window = (_WINDOW, _WINDOW), (_WINDOW / 4, _WINDOW / 4)
    xx, xy, yy, x, y = gaussian_blur2d((products * inside[0] * inside[1])[None], *window)[0]
    xx, yy = xx + _STIFFNESS, yy + _STIFFNESS
    x, y = x + _STIFFNESS * flow[0], y + _STIFFNESS * flow[1]
    return torch.stack([yy * x - xy * y, xx * y - xy * x]) / (xx * yy - xy * xy)


def _places(by: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where pixels come to lie by [2, H, W] pixels: columns and rows, [H, W] each."""
    down, right = torch.meshgrid(*(torch.arange(side).to(by) for side in by.shape[1:]), indexing="ij")
    return right + by[0], down + by[1]


def _grey(frame: torch.Tensor) -> torch.Tensor:
    return rgb_to_grayscale(frame[None].float())[0, 0].nan_to_num().clamp(0, 1)


@cache
def _opencv() -> Any:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:  # also one that is damaged by another package of the same name
        return None
    return cv2 if hasattr(cv2, "DISOpticalFlow_create") else None
