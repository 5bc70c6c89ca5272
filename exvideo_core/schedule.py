"""Noise levels: the sampling schedule of the ExVideo reference (Karras et al. 2022, eq. 5, cut by `denoise`)."""

from __future__ import annotations

import torch

from .types import ExVideoError

SIGMA_MAX = 700.0
SIGMA_MIN = 0.002
RHO = 7.0


def sigmas(steps: int, denoise: float = 1.0) -> torch.Tensor:
    """The reference's noise levels: Karras' ramp, of which `denoise` < 1 keeps the later part.

    Unlike ComfyUI's own `denoise`, which drops whole steps of a longer schedule, the ramp itself starts at
    1 − denoise, so `steps` levels are always spent.

    Args:
        steps: number of model calls, ≥ 1.
        denoise: 0 < denoise ≤ 1; 1 starts from pure noise (σ = 700).

    Returns:
        float32 [steps + 1], falling, ending in 0.

    Raises:
        ExVideoError: a number outside its range.
    """
    if steps < 1:
        raise ExVideoError(f"Sampling needs at least 1 step, got steps = {steps}.")
    if not 0.0 < denoise <= 1.0:
        raise ExVideoError(f"denoise lies above 0 and is at most 1, got {denoise}.")
    ramp = torch.linspace(1.0 - denoise, 1.0, steps)
    lowest, highest = (torch.tensor(s) ** (1.0 / RHO) for s in (SIGMA_MIN, SIGMA_MAX))
    levels = (highest + ramp * (lowest - highest)) ** RHO
    return torch.cat([levels, levels.new_zeros(1)])
