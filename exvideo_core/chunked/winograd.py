"""Convolutions in fewer products, for processors: Winograd's minimal filtering F(2, 3).

Two neighbours of a convolution over three places take four products instead of six, of sums of the inputs and sums of
the kernel; over two axes 16 instead of 36 (Lavin and Gray, arXiv 1509.09308, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange

from ..budget import MIB, chunks
from .products import suit
from .work import Affine, convolves_otherwise

_LEAST = 256 * 256
"""From how many channels that go in, times those that come out: with fewer, the sums take what the products save."""
_BLOCK = 16 * MIB
"""Bytes of sums of inputs, of kernels and of products that are held at a time: with less, products are too small to be
fast; with more, the C library keeps more than it has use for."""
_LANES = 32
"""Channels that go together: in products as wide as some of these no part of a processor's vector is idle."""
_SUMS = (1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)
"""Of three places of a kernel, for four products."""


def pays(x: torch.Tensor, conv: Any) -> bool:
    """Whether x may go through a convolution so, and is faster so than by torch; a compiler would write out all blocks.

    Args:
        x: any tensor like those that go in.
        conv: the layer.
    """
    plain = suit(x) and not convolves_otherwise(conv) and not torch.compiler.is_compiling()
    return plain and conv.in_channels * conv.out_channels >= _LEAST


def convolved(affine: Affine, layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Single frames [n, C, H, W] through a 3×3 convolution of the host's, as the host does it where this does not pay,
    or where there is a stride: results then are no neighbours."""
    if layer.stride[0] == 1 and pays(x, layer):
        with affine(layer, x) as lent:
            return over_maps(x, *lent)
    out: torch.Tensor = type(layer).forward(layer, x)
    return out


def over_maps(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A 3×3 convolution of single frames, zeros around them.

    Args:
        x: [n, C, H, W].
        kernel: [D, C, 3, 3].

    Returns:
        [n, D, H, W].
    """
    height, width = x.shape[2:]
    padded = F.pad(rearrange(x, "t c h w -> t h w c"), (0, 0, 1, 1 + width % 2, 1, 1 + height % 2))
    out = x.new_empty(len(x), height, width, len(kernel))
    convolve(padded, kernel[:, :, :, None], bias, out)
    return rearrange(out, "t h w c -> t c h w")


def convolve(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """A convolution over one axis place by place, and over two in tiles of 2 × 2 results.

    Args:
        x: [A + k − 1, P + 2, Q + 2, C]; with one more along an axis where P, or Q, is odd, which counts for nothing.
        kernel: [D, C, 3, k, 3].
        bias: [D].
        out: [A, P, Q, D], written.
    """
    along, height, width, channels = out.shape
    places, deep = kernel.shape[3], x.shape[-1]
    tall, wide = -(-height // 2), -(-width // 2)
    one_row = 16 * wide * max(deep, channels) * x.element_size()
    # Where the next block needs some of the same inputs again, larger ones.
    block = _BLOCK if places == 1 else 2 * _BLOCK
    for some in chunks(along, tall * one_row, block, halo=places - 1):
        met = slice(some.start, some.stop + places - 1)
        for rows in chunks(tall, (met.stop - met.start) * one_row, block):
            top, end = 2 * rows.start, 2 * rows.stop
            _convolve_block(x[met, top : end + 2], kernel, bias, out[some, top:end])


def _convolve_block(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """As `convolve`, with all sums of the inputs at once."""
    count, height, width, channels = out.shape
    places, deep = kernel.shape[3], x.shape[-1]
    four = kernel.new_tensor(_SUMS)
    sums = torch.einsum("au, bv, cw -> bacuvw", four, torch.eye(places).to(kernel), four)
    sums = sums.reshape(16 * places, 9 * places)
    inputs = _of_inputs(x)
    tiles = inputs.shape[1] // (count + places - 1)
    met = [inputs[:, place * tiles :][:, : count * tiles] for place in range(places)]
    shape = count, -(-height // 2), -(-width // 2), -1
    for lanes in chunks(-(-channels // _LANES), _LANES * 16 * places * deep * x.element_size(), _BLOCK):
        part = slice(_LANES * lanes.start, _LANES * lanes.stop)
        kernels = (sums @ kernel[part].reshape(-1, 9 * places).T).view(places, 16, -1, deep)
        by_sum = zip(zip(*met, strict=True), zip(*kernels, strict=True), strict=True)
        products = [_product(*of_one).view(shape) for of_one in by_sum]
        del kernels  # before the next are made
        if bias is not None:
            products[5] += bias[part]  # of the second sums along both axes, which all four results contain once
        _results(products, out[..., part])


def _of_inputs(x: torch.Tensor) -> torch.Tensor:
    """The sums of tiles of 4 × 4 inputs, of which each has two rows and columns in common with the next.

    Args:
        x: [n, 2 h + 2, 2 w + 2, C].

    Returns:
        [16, n · h · w, C].
    """
    count, height, width, channels = x.shape
    out = x.new_empty(4, 4, count, height // 2 - 1, width // 2 - 1, channels)
    for (add, one, other), of_row in zip(_terms(x, 1), out, strict=True):
        for (then_add, left, right), into in zip(_terms(add(one, other), 2), of_row, strict=True):
            then_add(left, right, out=into)
    return out.view(16, -1, channels)


def _terms(x: torch.Tensor, axis: int) -> Iterator[tuple[Any, torch.Tensor, torch.Tensor]]:
    """The four sums of inputs along an axis."""
    first, second, third, fourth = x.unfold(axis, 4, 2).unbind(-1)
    yield torch.sub, first, third
    yield torch.add, second, third
    yield torch.sub, third, second
    yield torch.sub, second, fourth


def _product(inputs: Sequence[torch.Tensor], kernels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of the sums [n, C] and [D, C] at all places of the axis that is not in tiles: [n, D]."""
    first, *others = (F.linear(some, kernel) for some, kernel in zip(inputs, kernels, strict=True))
    for more in others:
        first += more
    return first


def _results(products: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """Write tiles of 2 × 2 results, [n, ≤ 2 h, ≤ 2 w, D], from 16 products, [n, h, w, D], which are written over."""
    columns = (_pair(*products[column::4]) for column in range(4))
    for row, of_row in enumerate(zip(*columns, strict=True)):
        for column, result in enumerate(_pair(*of_row)):
            place = out[:, row::2, column::2]
            place.copy_(result[:, : place.shape[1], : place.shape[2]])


def _pair(
    first: torch.Tensor, second: torch.Tensor, third: torch.Tensor, fourth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two results of four products along an axis, one of them written over these."""
    odd = (second - third).sub_(fourth)
    return second.add_(third).add_(first), odd
