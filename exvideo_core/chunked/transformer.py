"""The UNet's spatio-temporal transformers, extended, written over their input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange

from . import fused, winograd
from .norms import normalised
from .work import Affine, Work, is_led, is_whole

# Working memory in maps of the layer's own width. Generous: a test counts that passes stay within.
_SPATIAL_MAPS, _CONV_MAPS, _TEMPORAL_MAPS = 21, 4, 23
_WORD = torch.int64


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
    """One extended spatio-temporal transformer, written over its input.

    Args:
        layer: the host's `SpatialVideoTransformer`.
        position: this layer's `PositionLayer`.
        rows: of the position table, one a frame.
        x: [videos · frames, C, H, W]; overwritten.
        context: image tokens, [videos · frames, 1, D].
        time_context: tokens for the temporal block, where they differ.
        options: the host's `transformer_options`.
    """
    frames, (height, width) = len(rows), x.shape[2:]
    if work.compile:
        options = {}  # Each step has others, and a compiler would begin anew for all of them.
    x = x.contiguous(memory_format=work.layout)
    tokens_of_x = x.flatten(2).transpose(1, 2)  # a view, so that adding to it adds to x
    spatial = x.new_empty(tokens_of_x.shape)
    said, run = said_of(layer.transformer_blocks[0], context), work.compiled(spatial_chunk)
    with work.at_hand(x, layer.norm, layer.proj_in, *_parts(layer.transformer_blocks[0])):
        for some in work.over(len(x), _SPATIAL_MAPS, x[0]):
            spatial[some] = run(work.affine, layer, x[some], said[some], options)

    run = work.compiled(temporal_chunk)
    said = said_of(layer.time_stack[0], (context if time_context is None else time_context)[::frames])
    embedded = position.embedded(rows, x, layer.time_pos_embed)
    with work.at_hand(x, position.conv, layer.proj_out, *_parts(layer.time_stack[0])):
        for video, start in enumerate(range(0, len(x), frames)):
            clip, out = spatial[start : start + frames], tokens_of_x[start : start + frames]
            volume = rearrange(clip, "t (h w) c -> t h w c", h=height)
            for band in work.over(height, _CONV_MAPS, volume[:, 0], halo=2):
                temporal = _positioned(work.affine, position, volume, embedded, band)
                for some in work.over(temporal.shape[1], _TEMPORAL_MAPS, clip[:, 0]):
                    cells = slice(band.start * width + some.start, band.start * width + some.stop)
                    out[:, cells] += run(work.affine, layer, clip[:, cells], temporal[:, some], said[video], options)
    return x


def leads_past_others(layer: Any) -> bool:
    """Whether others have put something in the way of a module of the host's `SpatialVideoTransformer` that is not run
    as a whole here; queries and keys for a single token count for nothing."""
    modules = [layer.norm, layer.time_mixer]
    for block in (layer.transformer_blocks[0], layer.time_stack[0]):
        feed_forwards = [part for part in (block.ff_in, block.ff) if part]
        modules += [block, block.attn2, *feed_forwards, *(part.net[0] for part in feed_forwards)]
    return any(map(is_led, modules))


def _parts(block: Any) -> list[Any]:
    """What `_block` runs of the host's transformer block: all but the cross-attention."""
    return [part for name, part in block.named_children() if name not in ("attn2", "norm2")]


def spatial_chunk(
    affine: Affine, layer: Any, x: torch.Tensor, said: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """Some frames, [n, C, H, W], through the spatial block: [n, positions, C]."""
    tokens = layer.proj_in(rearrange(normalised(affine, layer.norm, x), "t c h w -> t (h w) c"))
    return _block(affine, layer.transformer_blocks[0], tokens, said, options)


def temporal_chunk(
    affine: Affine, layer: Any, spatial: torch.Tensor, temporal: torch.Tensor, said: torch.Tensor, options: Any
) -> torch.Tensor:
    """Some positions, [T, n, C], through the temporal block, mixed with the spatial one's: what they add to the map."""
    # [positions, frames, C]: a copy of the part, which then may be written over.
    tokens = _block(affine, layer.time_stack[0], _swapped(temporal), said, options)
    share = layer.time_mixer.get_alpha(None, tokens.device).flatten().to(tokens)
    mix = torch.lerp if torch.is_grad_enabled() else torch.Tensor.lerp_
    mixed: torch.Tensor = layer.proj_out(mix(_swapped(tokens), spatial, share))
    return mixed


def _swapped(x: torch.Tensor) -> torch.Tensor:
    """[a, b, C] as [b, a, C], copied."""
    rows, compiling = x.transpose(0, 1), torch.compiler.is_compiling()
    fits = x.stride(-1) == 1 and x.shape[-1] * x.element_size() % _WORD.itemsize == 0
    if x.is_cuda and fits and not torch.is_grad_enabled() and not compiling:
        return _copied_by_words(rows)
    return rows.contiguous()


def _copied_by_words(rows: torch.Tensor) -> torch.Tensor:
    """A copy, 8 bytes at a time: a GPU copies single numbers of half precision at a fifth of its rate."""
    return rows.view(_WORD).contiguous().view(rows.dtype)


def _positioned(affine: Affine, position: Any, clip: torch.Tensor, embedded: torch.Tensor, band: slice) -> torch.Tensor:
    """Some rows of a clip with positions added and neighbours mixed by the 3-D convolution.

    Args:
        clip: [T, H, W, C].
        embedded: positions, [T, C].
        band: which rows.

    Returns:
        [T, rows · W, C].
    """
    frames, height, width, channels = clip.shape
    above, below = max(band.start - 1, 0), min(band.stop + 1, height)
    by_tiles = winograd.pays(clip, position.conv)
    # With one cell more on each side, into which the inside is written without a copy on the way.
    shape = frames + 2, band.stop - band.start + 2, width + 2
    if by_tiles:
        # Over whole axes, frames and columns, so that tiles are the same whatever the band.
        filled = clip.new_zeros(frames + 2 + frames % 2, shape[1], width + 2 + width % 2, channels)
        padded = filled[: frames + 2, :, : width + 2]
    elif clip.device.type == "cpu":
        # The layout that a processor's convolution reads best; in the other it would lay out its weights anew.
        padded = clip.new_empty(channels, *shape).permute(1, 2, 3, 0)
    else:
        padded = clip.new_empty(*shape, channels)
    first = above - band.start + 1
    inside = padded[1:-1, first : first + below - above, 1:-1]
    torch.add(clip[:, above:below], embedded[:, None, None], out=inside)
    _mirror(padded[1:-1, :, 1:-1], 1, height, band.start == 0, band.stop == height)
    _mirror(padded[1:-1], 2, width)
    _mirror(padded, 0, frames)
    with affine(position.conv, clip) as (kernel, bias):
        if by_tiles:
            out = clip.new_empty(frames, shape[1] - 2, width, channels)
            winograd.convolve(filled.transpose(0, 1), kernel, bias, out.transpose(0, 1))
            return rearrange(out, "t h w c -> t (h w) c")
        if clip.device.type != "cpu":
            kernel = kernel.contiguous(memory_format=torch.channels_last_3d)
        mixed = position.conv._conv_forward(rearrange(padded, "t h w c -> 1 c t h w"), kernel, bias)
    return rearrange(mixed, "1 c t h w -> t (h w) c")


def _mirror(padded: torch.Tensor, axis: int, length: int, first: bool = True, last: bool = True) -> None:
    """Fill the cells before the first and after the last of an axis: with their mirror image, or with the only cell."""
    near = 2 if length > 1 else 1
    if first:
        padded.select(axis, 0).copy_(padded.select(axis, near))
    if last:
        padded.select(axis, -1).copy_(padded.select(axis, -1 - near))


def said_of(block: Any, token: torch.Tensor) -> torch.Tensor:
    """What cross-attention says of a single token, whatever is asked: softmax over one key is 1."""
    said: torch.Tensor = block.attn2.to_out(block.attn2.to_v(token))
    return said


def _block(affine: Affine, block: Any, x: torch.Tensor, said: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """The host's transformer block on [n, tokens, C], written over x; `said` is its cross-attention."""
    # A gradient needs what would be written over.
    add = torch.add if torch.is_grad_enabled() else torch.Tensor.add_
    if block.ff_in:
        x = add(x, _feed_forward(affine, block.ff_in, block.norm_in(x)))
    x = add(x, block.attn1(block.norm1(x), transformer_options=options))
    x = add(x, said)
    return add(x, _feed_forward(affine, block.ff, block.norm3(x)))


def _feed_forward(affine: Affine, ff: Any, x: torch.Tensor) -> torch.Tensor:
    """The host's gated feed-forward layer, values and gates each in one piece: side by side they are read slowly."""
    gated, _, last = ff.net
    if torch.is_grad_enabled() or not _is_plain(gated.proj, x):
        out: torch.Tensor = ff(x)
        return out
    with affine(gated.proj, x) as lent:
        values, gates = (F.linear(x, *half) for half in zip(*(tensor.chunk(2) for tensor in lent), strict=True))
    hidden = fused.gated(values, gates)
    projected: torch.Tensor = last(hidden)
    return projected


def _is_plain(layer: Any, x: torch.Tensor) -> bool:
    """Whether a layer is no more than a product with weights in 16 bits or more that are at hand where x is.

    Others may have led it elsewhere; quantized weights have products of their own; and weights that wait in main
    memory the host fetches while it computes. Those that newer hosts stream are at hand (`_v` is their mark).
    """
    return is_whole(layer.weight) and not is_led(layer) and (layer.weight.device == x.device or hasattr(layer, "_v"))
