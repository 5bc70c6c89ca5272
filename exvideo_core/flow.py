"""Dense optical flow between two frames, by a library: OpenCV where the host has it, else scikit-image.

OpenCV comes in four packages that overwrite one another, so this pack asks for none of them; most hosts have one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from kornia.color import rgb_to_grayscale
from kornia.filters import gaussian_blur2d

Flow = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Frames [3, H, W] in [0, 1], from and to → how many pixels each of the first moves, right and down, [2, H, W]."""

SMALLEST = 16
"""Pixels of a side below which nothing is to be found."""


def library_flow() -> Flow:
    """The fastest there is; both find the same motion, to a fraction of a pixel where there is texture."""
    return opencv_flow if _opencv() is not None else scikit_image_flow


def opencv_flow(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """By dense inverse search (Kroeger et al. 2016)."""
    cv2 = _opencv()
    before, after = ((255 * _grey(frame)).round().byte().numpy() for frame in (first, second))
    # Not kept between calls: it would begin with the flow found last.
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return torch.from_numpy(search.calc(before, after, None)).movedim(-1, 0).to(first.device)


def scikit_image_flow(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """By iterated Lucas-Kanade (Le Besnerais and Champagnat 2005), on frames of even brightness and contrast."""
    registration = importlib.import_module("skimage.registration")
    before, after = (_even(_grey(frame)).numpy() for frame in (first, second))
    down, right = registration.optical_flow_ilk(before, after, radius=7, num_warp=6, gaussian=True)
    return torch.stack([torch.from_numpy(right), torch.from_numpy(down)]).float().to(first.device)


def _grey(frame: torch.Tensor) -> torch.Tensor:
    return rgb_to_grayscale(frame[None].float().cpu())[0, 0].nan_to_num().clamp(0, 1)


def _even(grey: torch.Tensor, deviation: float = 12.0) -> torch.Tensor:
    """Brightness and contrast of the surroundings taken out, against changes of light."""

    def around(values: torch.Tensor) -> torch.Tensor:
        # The kernel's reflection at the edges may not reach over the picture.
        side = min(49, 2 * ((min(values.shape) - 1) // 2) + 1)
        return gaussian_blur2d(values[None, None], (side, side), (deviation, deviation))[0, 0]

    level = grey - around(grey)
    return level / (around(level.square()) + 1e-3).sqrt()


@cache
def _opencv() -> Any:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:  # also one that is damaged by another package of the same name
        return None
    return cv2 if hasattr(cv2, "DISOpticalFlow_create") else None
