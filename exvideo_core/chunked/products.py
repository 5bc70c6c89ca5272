"""Convolutions over time and long sums as matrix products of moderate length, for processors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from .norms import precise


def suit(x: torch.Tensor) -> bool:
    """Whether what is done to x may be a sum of products.

    That is on a processor, without gradients, and in a precision that rounds a sum on the way no more than a product.
    """
    return x.is_cpu and x.dtype == precise(x) and not torch.is_grad_enabled()


def over_time(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A convolution over three frames, zeros before and after the clip: a half to 0.8 of a convolution's time.

    Args:
        x: [T, C, H, W].
        kernel: [D, C, 3, 1, 1].

    Returns:
        [T, D, H, W].
    """
    height = x.shape[2]
    before, here, after = kernel[..., 0, 0].unbind(2)
    tokens = rearrange(x, "t c h w -> (t h w) c")
    frame = len(tokens) // len(x)
    out = F.linear(tokens, here, bias)
    if len(x) > 1:
        out[frame:].addmm_(tokens[:-frame], before.T)
        out[:-frame].addmm_(tokens[frame:], after.T)
    return rearrange(out, "(t h w) c -> t c h w", t=len(x), h=height)


def in_pieces(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x · weightᵀ + bias in sums as long as the result is wide, one added to the other.

    A processor shares out a longer sum among its cores where the rows are few, and then rounds it differently: the
    result would depend on the chunks.
    """
    rows, length = x.flatten(0, -2), weight.shape[0]
    (first, *others), (kernel, *kernels) = torch.split(rows, length, 1), torch.split(weight, length, 1)
    out = F.linear(first, kernel, bias)
    for part, kernel in zip(others, kernels, strict=True):
        out.addmm_(part, kernel.T)
    return out.reshape(*x.shape[:-1], -1)
