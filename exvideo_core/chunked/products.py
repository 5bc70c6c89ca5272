"""Convolutions and long sums as matrix products of moderate length, for processors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from .norms import precise

_LARGE = 100
"""From how many numbers of a kernel for each of a frame's maps on products are faster than torch's convolution, which
lays out its kernel anew, twice, at each call."""


def suit(x: torch.Tensor) -> bool:
    """Whether what is done to x may be a sum of products.

    That is on a processor, without gradients, and in a precision that rounds a sum on the way no more than a product.
    """
    return x.is_cpu and x.dtype == precise(x) and not torch.is_grad_enabled()


def pay(kernel: torch.Tensor, frame: torch.Tensor) -> bool:
    """Whether `over_places` suits, and is faster than a convolution with this kernel.

    Args:
        frame: one frame of the maps, so that chunks of any number of them are computed in one way.
    """
    return suit(frame) and kernel.numel() > _LARGE * frame.numel()


def over_places(padded: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A convolution as a product for each place of its kernel.

    Args:
        padded: [T + t − 1, H + h − 1, W + w − 1, C].
        kernel: [D, C, t, h, w].

    Returns:
        [T, H, W, D].
    """
    times, *sides = kernel.shape[2:]
    frames, height, width = (size - side + 1 for size, side in zip(padded.shape[:3], (times, *sides), strict=True))
    # The channels of a place together, so that a product reads them where they are.
    laid_out = rearrange(kernel.contiguous(memory_format=torch.channels_last_3d), "d c t h w -> t h w d c")
    frame = height * width
    places = frames * frame
    out = padded.new_zeros(places, len(kernel)) if bias is None else bias.repeat(places, 1)
    for row in range(sides[0]):
        for column in range(sides[1]):
            rows = rearrange(padded[:, row : row + height, column : column + width], "t h w c -> (t h w) c")
            for time in range(times):
                out.addmm_(rows[time * frame :][:places], laid_out[time, row, column].T)
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
