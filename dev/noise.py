"""Noise to try things on, the same each time."""

from __future__ import annotations

import torch


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """A tensor of this shape, normally distributed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
