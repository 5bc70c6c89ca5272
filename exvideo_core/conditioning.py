"""From a picture to what conditions the video: the image for CLIP, the noised image for the autoencoder."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from kornia.geometry.transform import resize

from .types import ClipShape, ExVideoError

log = logging.getLogger(__name__)


def rgb(images: torch.Tensor) -> torch.Tensor:
    """Images of 1 (grey), 3 (RGB) or 4 (RGBA, alpha dropped) channels, [N, H, W, C] in [0, 1], as RGB in float32.

    Newer hosts may keep pictures in half precision, in which nothing can be resized.

    Raises:
        ExVideoError: not a batch of images, an empty one, or another number of channels.
    """
    if images.ndim != 4 or not images.numel():
        raise ExVideoError(f"Expected an image of shape [N, H, W, channels], got {list(images.shape)}.")
    channels = images.shape[-1]
    images = images.float()
    if channels == 1:
        return images.expand(-1, -1, -1, 3)
    if channels not in (3, 4):
        raise ExVideoError(f"Expected an image of 1, 3 or 4 channels, got {channels}.")
    return images[..., :3]


def first_image(images: torch.Tensor) -> torch.Tensor:
    """The first image of a batch as RGB, [1, H, W, 3]; says so in the log where there are more."""
    if len(images) > 1:
        log.warning("ExVideo starts from one picture: the first of the %d connected is used.", len(images))
    return rgb(images[:1])


def fit(images: torch.Tensor, shape: ClipShape) -> torch.Tensor:
    """Resize [N, H, W, 3] to the clip's size, cropping the centre where the proportions differ."""
    height, width = images.shape[1:3]
    if (height, width) == (shape.height, shape.width):
        return images
    scale = min(height / shape.height, width / shape.width)
    rows, columns = max(1, round(shape.height * scale)), max(1, round(shape.width * scale))
    top, left = (height - rows) // 2, (width - columns) // 2
    centre = images[:, top : top + rows, left : left + columns].movedim(-1, 1)
    resized = F.interpolate(centre, (shape.height, shape.width), mode="bicubic", antialias=True)
    return resized.clamp(0, 1).movedim(1, -1)


def clip_pixels(image: torch.Tensor, size: int, mean: list[float], std: list[float]) -> torch.Tensor:
    """The whole picture as SVD's image encoder was trained to see it: squeezed to a square, with antialiasing.

    A Gaussian blur against aliasing, then bicubic with aligned corners (Stability's generative-models and the
    ExVideo reference); ComfyUI's own CLIP input crops the centre instead.

    Args:
        image: [1, H, W, 3] in [0, 1].
        size: side of the square in pixels, 224 for SVD.
        mean, std: of CLIP's normalisation, per channel, for pixels in [0, 1].

    Returns:
        [1, 3, size, size].
    """
    pixels = image.float().movedim(-1, 1) * 2 - 1
    pixels = resize(pixels, (size, size), interpolation="bicubic", align_corners=True, antialias=True)
    per_channel = (torch.tensor(values).view(1, 3, 1, 1).to(pixels) for values in (mean, std))
    return ((pixels + 1) / 2 - next(per_channel)) / next(per_channel)


def augment(image: torch.Tensor, level: float, seed: int) -> torch.Tensor:
    """Add SVD's augmentation noise, whose deviation is `level` for pixels in [−1, 1].

    Args:
        image: [1, H, W, 3] in [0, 1].
        level: ≥ 0; 0 leaves the image as it is.
        seed: of the noise, drawn on the CPU from a generator of its own.

    Returns:
        [1, H, W, 3], again on the scale where a pixel is 0 … 1, but not clipped to it.
    """
    noise = torch.randn(image.movedim(-1, 1).shape, generator=torch.Generator().manual_seed(seed))
    return image + level / 2 * noise.movedim(1, -1).to(image)
