"""The UNet's blocks for training: nothing is written over, and a gradient computes its chunk again.

Activation checkpointing on two levels. Of a whole layer only its input is kept; when its gradient is due, the layer
runs again, and of each chunk in it again only the input is kept. So at any time the intermediate results of one
chunk are in memory. Without a budget, nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch.utils.checkpoint import checkpoint

from .norms import activated, clip_moments, precise
from .res_block import image_chunk
from .transformer import said_of, spatial_chunk, temporal_chunk
from .work import Source, Work

# Working memory in maps of the layer's own width, all that a gradient needs of a chunk included.
_SPATIAL_MAPS, _TEMPORAL_MAPS, _RES_MAPS = 60, 90, 16


def transformer(
    work: Work,
    layer: Any,
    position: Any,
    rows: Sequence[int],
    x: torch.Tensor,
    context: torch.Tensor,
    time_context: torch.Tensor | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """One extended spatio-temporal transformer; see `transformer.transformer` for what it takes."""
    frames, (height, width) = len(rows), x.shape[2:]
    tokens = (context if time_context is None else time_context)[::frames]

    def whole(x: torch.Tensor) -> torch.Tensor:
        sizes = _sizes(work, len(x), _SPATIAL_MAPS, x[0])
        said = said_of(layer.transformer_blocks[0], context)
        parts = zip(torch.split(x, sizes), torch.split(said, sizes), strict=True)
        spatial = torch.cat(
            [_again(work, spatial_chunk, work.affine, layer, part, token, options) for part, token in parts]
        )
        mixed = _again(work, position, spatial, rows, height, layer.time_pos_embed)
        videos = []
        for clip, moved, token in zip(
            torch.split(spatial, frames), torch.split(mixed, frames), said_of(layer.time_stack[0], tokens), strict=True
        ):
            sizes = _sizes(work, height * width, _TEMPORAL_MAPS, clip[:, 0])
            cells = zip(torch.split(clip, sizes, 1), torch.split(moved, sizes, 1), strict=True)
            videos.append(
                torch.cat(
                    [_again(work, temporal_chunk, work.affine, layer, *pair, token, options) for pair in cells], 1
                )
            )
        return rearrange(torch.cat(videos), "t (h w) c -> t c h w", h=height) + x

    return _again(work, whole, x)


def res_block(work: Work, block: Any, x: torch.Tensor, emb: torch.Tensor, frames: int) -> torch.Tensor:
    """The UNet's ResNet block; see `res_block.res_block` for what it takes."""
    parts: list[Source] = work.pending or [x]
    work.pending = []
    stack = block.time_stack

    def mix(spatial: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        volumes = (rearrange(maps, "t c h w -> 1 c t h w") for maps in (spatial, spatial + added))
        return rearrange(block.time_mixer(*volumes), "1 c t h w -> t c h w")

    def joined(shift: torch.Tensor, *pieces: Any) -> torch.Tensor:
        return image_chunk(work.affine, block, torch.cat([piece[:] for piece in pieces], 1), shift)

    def whole(emb: torch.Tensor) -> torch.Tensor:
        one = emb.new_empty(()).expand(block.out_channels, *parts[0].shape[2:])
        slices = list(work.over(len(emb), _RES_MAPS, one))
        pieces = zip(*(_cut(part, slices) for part in (block.emb_layers(emb), *parts)), strict=True)
        spatial = torch.cat([_again(work, joined, *of) for of in pieces])
        videos = []
        for clip, shift in zip(torch.split(spatial, frames), torch.split(stack.emb_layers(emb), frames), strict=True):
            hidden = _along_time(work, stack.in_layers[0], stack.in_layers[-1], clip) + shift[:, :, None, None]
            hidden = _along_time(work, stack.out_layers[0], stack.out_layers[-1], hidden)
            videos.append(mix(clip, hidden))
        return torch.cat(videos)

    return _again(work, whole, emb)


def per_frame(work: Work, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """What does not mix frames."""
    sizes = _sizes(work, len(x), _RES_MAPS, x[0])
    return torch.cat([_again(work, run, part) for part in torch.split(x, sizes)])


def _along_time(work: Work, norm: Any, conv: Any, clip: torch.Tensor) -> torch.Tensor:
    """Norm over the whole clip, SiLU, convolution over three frames."""
    mean, var = _again(work, clip_moments, work, clip, norm.num_groups)
    with work.affine(norm, clip) as lent:
        weight, bias = (tensor.to(precise(clip)) for tensor in lent)
    sizes = _sizes(work, clip.shape[2], _RES_MAPS, clip[:, :, 0])
    parts = torch.split(clip, sizes, 2)
    return torch.cat([_again(work, _convolved, conv, part, mean, var, weight, bias, norm.eps) for part in parts], 2)


def _convolved(conv: Any, x: torch.Tensor, *norm: Any) -> torch.Tensor:
    maps: torch.Tensor = conv(rearrange(activated(x, *norm), "t c h w -> 1 c t h w"))
    return rearrange(maps, "1 c t h w -> t c h w")


def _cut(part: Source, slices: list[slice]) -> list[Any]:
    """Pieces of a source; what has yet to be made is not made now."""
    if isinstance(part, torch.Tensor):
        return list(torch.split(part, [some.stop - some.start for some in slices]))
    return [_Piece(part, some) for some in slices]


@dataclass(frozen=True)
class _Piece:
    part: Source
    some: slice

    def __getitem__(self, _all: Any) -> Any:
        return self.part[self.some]


def _sizes(work: Work, count: int, maps: float, one: torch.Tensor) -> list[int]:
    return [some.stop - some.start for some in work.over(count, maps, one)]


def _again(work: Work, run: Callable[..., Any], *args: Any) -> Any:
    """Run it, and again for its gradient, instead of keeping what it computes on the way."""
    if work.budget is None:
        return run(*args)
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)
