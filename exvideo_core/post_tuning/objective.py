"""What is learned: latents without their noise (the loss of SVD, which ExVideo keeps but for the contrast)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..schedule import sigmas

LEVELS = 1000
"""Steps of the sampling schedule, whose noise levels are drawn from, all equally often."""
CONTRAST = 1.01
"""What the latents are multiplied by before they are learned, so that videos do not turn grey."""


class Draw(NamedTuple):
    """The chance in one step.

    Attributes:
        clip: which one.
        sigma: noise level.
        seed: of the noise.
    """

    clip: int
    sigma: float
    seed: int


def draw(seed: int, step: int, clips: int, sigma_min: float = 0.0) -> Draw:
    """The chance in a step, by its number alone: a run that goes on draws as one that never stopped.

    Every clip comes once before any comes again, in another order each time.

    Args:
        seed: of the run.
        step: number of the step.
        clips: how many there are.
        sigma_min: no noise level below it is drawn.
    """
    epoch, turn = divmod(step, clips)
    order = torch.randperm(clips, generator=_generator(seed, epoch, 1))
    generator = _generator(seed, step, 2)
    levels = sigmas(LEVELS)[:LEVELS]
    levels = levels[levels >= sigma_min]
    level = int(torch.randint(len(levels), (), generator=generator))
    noise = int(torch.randint(2**62, (), generator=generator))
    return Draw(int(order[turn]), float(levels[level]), noise)


def noise_like(latents: torch.Tensor, seed: int) -> torch.Tensor:
    """Standard normal noise, drawn on the CPU, so that it is the same on every device."""
    return torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)


def loss(denoised: torch.Tensor, latents: torch.Tensor, sigma: float, contrast: float = CONTRAST) -> torch.Tensor:
    """The weighted error of what a model makes of noised latents: a scalar, in float32.

    Args:
        denoised: what the model says the latents are, [T, 4, H/8, W/8].
        latents: what they are, on the model's scale.
        sigma: noise level.
        contrast: factor on the latents.
    """
    weight = math.sqrt(1 + sigma**2) / sigma
    return weight * torch.nn.functional.mse_loss(denoised.float(), contrast * latents.float())


def _generator(seed: int, number: int, purpose: int) -> torch.Generator:
    # Spread over all 64 bits by odd factors, or the draws of neighbouring seeds and steps would be the same.
    mixed = seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + purpose * 0x8CB92BA72F3D8DD7
    return torch.Generator().manual_seed(mixed % 2**63)
