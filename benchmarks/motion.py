"""Videos of natural textures under motion that is known exactly, so that any frame can be removed and made again."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage
import torch
import torch.nn.functional as F
from PIL import Image

SIDE, TEXTURE = 256, 512
"""Pixels of a side, of videos and of the textures that they show parts of."""

_DOWN, _RIGHT = torch.meshgrid(torch.arange(SIDE).float(), torch.arange(SIDE).float(), indexing="ij")


def texture(name: str) -> torch.Tensor:
    """A picture that scikit-image brings along, [TEXTURE, TEXTURE, 3]."""
    path = Path(skimage.__file__).parent / "data" / f"{name}.png"
    picture = Image.open(path).convert("RGB").resize((TEXTURE, TEXTURE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(picture).copy()).float() / 255


def pan(time: float, name: str = "coffee") -> torch.Tensor:
    return _sampled(name, _RIGHT + 128 + 4.3 * time, _DOWN + 128 - 2.6 * time)


def zoom(time: float, name: str = "astronaut") -> torch.Tensor:
    scale = 1.015**time
    return _sampled(name, 256 + (_RIGHT - 128) / scale, 256 + (_DOWN - 128) / scale)


def rotation(time: float, name: str = "chelsea") -> torch.Tensor:
    angle = math.radians(1.6 * time)
    u, v = _RIGHT - 128, _DOWN - 128
    return _sampled(
        name, 256 + u * math.cos(angle) - v * math.sin(angle), 256 + u * math.sin(angle) + v * math.cos(angle)
    )


def light(time: float) -> torch.Tensor:
    """A pan while it gets brighter."""
    return (pan(0.7 * time, "astronaut") * (0.7 + 0.04 * time)).clamp(0, 1)


def occlusion(time: float, behind: str = "brick", before: str = "astronaut") -> torch.Tensor:
    """A disc that passes before a background that moves the other way."""
    back = _sampled(behind, _RIGHT + 128 - 2 * time, _DOWN + 128)
    x, y = 90 + 5 * time, 128 + 1.5 * time
    inside = (50 - torch.hypot(_RIGHT - x, _DOWN - y) + 0.5).clamp(0, 1)[..., None]
    return torch.lerp(back, _sampled(before, _RIGHT - x + 256, _DOWN - y + 256), inside)


def occlusion_on_coffee(time: float) -> torch.Tensor:
    return occlusion(time, "coffee", "gravel")


CASES: dict[str, Callable[[float], torch.Tensor]] = {
    "pan": pan,
    "zoom": zoom,
    "rotation": rotation,
    "light": light,
    "occlusion, astronaut before brick": occlusion,
    "occlusion, gravel before coffee": occlusion_on_coffee,
}
"""What is shown → its frame [SIDE, SIDE, 3] at a time, counted in frames."""


def video(case: str, frames: int) -> torch.Tensor:
    """[T, SIDE, SIDE, 3]"""
    return torch.stack([CASES[case](float(time)) for time in range(frames)])


def _sampled(name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A texture at places in its pixels, [SIDE, SIDE, 3]."""
    grid = (torch.stack([x, y], -1) + 0.5) / TEXTURE * 2 - 1
    found = F.grid_sample(
        texture(name).movedim(-1, 0)[None], grid[None], mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return found[0].movedim(0, -1).clamp(0, 1)
