"""Convolutions and long sums as matrix products of moderate length, for processors."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange

from ..budget import MIB
from .norms import precise
from .work import Affine

_LARGE = 32 * MIB
"""From which size of a kernel on products are faster than torch's convolution, which lays it out anew, twice, at each
call: from here on, the C library keeps no freed memory for the next."""
_CHANNELS = 160
"""How many channels' part of a kernel is laid out at a time: of SVD's largest, 22 MiB."""


def suit(x: torch.Tensor) -> bool:
    """Whether what is done to x may be a sum of products.

    That is on a processor, without gradients, and in a precision that rounds a sum on the way no more than a product.
    """
    return x.is_cpu and x.dtype == precise(x) and not torch.is_grad_enabled()


def pay(x: torch.Tensor, kernel: torch.Tensor) -> bool:
    """Whether `over_places` suits x, and is faster than a convolution with this kernel."""
    return suit(x) and kernel.numel() * x.element_size() >= _LARGE


def convolved(affine: Affine, layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Single frames [n, C, H, W] through a 3×3 convolution of the host's, as it does it where products do not pay."""
    if pay(x, layer.weight):
        with affine(layer, x) as lent:
            return over_maps(x, *lent, layer.stride[0])
    out: torch.Tensor = type(layer).forward(layer, x)
    return out


def over_maps(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, stride: int = 1) -> torch.Tensor:
    """A 3×3 convolution of single frames, zeros around them.

    Args:
        x: [n, C, H, W].
        kernel: [D, C, 3, 3].

    Returns:
        [n, D, ⌈H / stride⌉, ⌈W / stride⌉].
    """
    padded = F.pad(rearrange(x, "t c h w -> t h w c"), (0, 0, 1, 1, 1, 1))
    return rearrange(over_places(padded, kernel[:, :, None], bias, stride), "t h w c -> t c h w")


def over_places(padded: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, stride: int = 1) -> torch.Tensor:
    """A convolution as a product for each place of its kernel.

    Args:
        padded: [T + t − 1, S · (H − 1) + h, S · (W − 1) + w, C].
        kernel: [D, C, t, h, w].
        stride: S, from one place of a frame to the next.

    Returns:
        [T, H, W, D].
    """
    times, tall, wide = kernel.shape[2:]
    frames, height, width = (
        (size - side) // step + 1
        for size, side, step in zip(padded.shape[:3], (times, tall, wide), (1, stride, stride), strict=True)
    )
    frame = height * width
    places = frames * frame
    out = padded.new_zeros(places, len(kernel)) if bias is None else bias.repeat(places, 1)
    space = torch.empty_like(kernel[:, :_CHANNELS], memory_format=torch.channels_last_3d)
    for channels, part in zip(torch.split(padded, _CHANNELS, 3), torch.split(kernel, _CHANNELS, 1), strict=True):
        # The channels of a place together, so that a product reads them where they are.
        laid_out = space[:, : part.shape[1]].copy_(part)
        for row, column in product(range(tall), range(wide)):
            met = channels[:, row::stride, column::stride][:, :height, :width]
            rows = rearrange(met, "t h w c -> (t h w) c")
            for time in range(times):
                out.addmm_(rows[time * frame :][:places], laid_out[..., time, row, column].T)
    return rearrange(out, "(t h w) d -> t h w d", t=frames, h=height)


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
