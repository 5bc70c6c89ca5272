"""What flows between the stages, and the error a person at the graph gets to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

LATENT_CHANNELS = 4
PIXELS_PER_CELL = 8
"""SVD's autoencoder maps 8×8 pixels to one latent cell."""


class ExVideoError(ValueError):
    """Bad input, told to the person at the graph: what was expected, what was got, what to do."""


class LatentShape(NamedTuple):
    """The shape of a clip in latent space, ComfyUI's layout for SVD: one batch entry a frame."""

    frames: int
    channels: int
    height: int
    width: int


class ClipShape(NamedTuple):
    """A clip's length in frames and its size in pixels."""

    frames: int
    height: int
    width: int

    @classmethod
    def of_pixels(cls, frames: int, height: int, width: int) -> ClipShape:
        """The largest clip of whole latent cells within height × width pixels.

        Raises:
            ExVideoError: fewer than one frame, or less than one latent cell to a side.
        """
        if frames < 1:
            raise ExVideoError(f"A video needs at least 1 frame, got num_frames = {frames}.")
        if min(height, width) < PIXELS_PER_CELL:
            raise ExVideoError(
                f"A video needs at least {PIXELS_PER_CELL}×{PIXELS_PER_CELL} pixels, got {width}×{height}."
            )
        return cls(frames, height - height % PIXELS_PER_CELL, width - width % PIXELS_PER_CELL)

    @property
    def latent(self) -> LatentShape:
        return LatentShape(self.frames, LATENT_CHANNELS, self.height // PIXELS_PER_CELL, self.width // PIXELS_PER_CELL)


def clip_latents(latent: Mapping[str, Any]) -> torch.Tensor:
    """The latents of an SVD clip, [T, 4, H/8, W/8], out of a ComfyUI LATENT.

    Raises:
        ExVideoError: the LATENT holds something else, or nothing.
    """
    samples: torch.Tensor = latent["samples"]
    if samples.ndim != 4 or samples.shape[1] != LATENT_CHANNELS or not samples.numel():
        raise ExVideoError(
            f"Expected the latents of an SVD clip, [frames, {LATENT_CHANNELS}, height/8, width/8], "
            f"got {list(samples.shape)}: connect those of ExVideo Image to Video."
        )
    return samples
