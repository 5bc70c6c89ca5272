"""SVD's layers for long clips, in chunks: the same numbers in a fraction of the memory.

Little in the UNet mixes frames, and what does mixes few positions. So everything spatial is worked through some frames
at a time, temporal attention some positions at a time, and a layer writes its output over the map that it no longer
needs. Normalisations over the whole clip keep their statistics: these are gathered chunk by chunk first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange

from .plan import chunks

Affine = Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Weight and bias of a normalisation module as they act on a tensor, wherever and however they are stored."""

# Working memory of each kind of layer, in maps of its own width. Generous: a test counts that passes stay within.
_RES_MAPS, _SPATIAL_MAPS, _CONV_MAPS, _TEMPORAL_MAPS = 6, 21, 4, 23


@dataclass
class Work:
    """How a pass is done.

    Attributes:
        budget: bytes of working memory beside the maps that a layer has to hold; None works on all at once.
        affine: see `Affine`.
        pending: inputs of the next ResNet block, kept apart instead of concatenated along their channels.
    """

    budget: int | None = None
    affine: Affine = lambda module, x: (module.weight, module.bias)
    pending: list[torch.Tensor] = field(default_factory=list)

    def over(self, count: int, maps: float, one: torch.Tensor, halo: int = 0) -> Iterator[slice]:
        """Slices of `count` entries, each of which takes `maps` times the bytes of `one`."""
        yield from chunks(count, round(maps * one.numel() * one.element_size()), self.budget, halo)


def res_block(work: Work, block: Any, x: torch.Tensor, emb: torch.Tensor, frames: int) -> torch.Tensor:
    """SVD's ResNet block: a spatial one, a temporal one, mixed.

    Args:
        x: [videos · frames, C, H, W]; without channels where `work.pending` holds the inputs.
        emb: [videos · frames, D].
    """
    parts = work.pending or [x]
    work.pending = []
    out = parts[0].new_empty(x.shape[0], block.out_channels, *x.shape[2:])
    widest = max(sum(part.shape[1] for part in parts), block.out_channels)
    for some in work.over(len(out), _RES_MAPS * widest / block.out_channels, out[0]):
        inputs = torch.cat([part[some] for part in parts], 1) if len(parts) > 1 else parts[0][some]
        out[some] = block._forward(inputs, emb[some])
    del parts, x, inputs

    for start in range(0, len(out), frames):
        video = slice(start, start + frames)
        _temporal_res_block(work, block.time_stack, out[video], emb[video], block.time_mixer)
    return out


def _temporal_res_block(work: Work, block: Any, clip: torch.Tensor, emb: torch.Tensor, mixer: Any) -> None:
    """The temporal block on one video, [T, C, H, W], in place: convolutions over time, norms over the whole clip."""
    norm_in, _, conv_in = block.in_layers
    norm_out, *_, conv_out = block.out_layers
    hidden = torch.empty_like(clip)
    shift = block.emb_layers(emb)[:, :, None, None]
    for some, result in _along_time(work, conv_in, norm_in, clip):
        torch.add(result, shift, out=hidden[:, :, some])
    for some, result in _along_time(work, conv_out, norm_out, hidden):
        part = clip[:, :, some]
        mixed = mixer(x_spatial=_to_volume(part), x_temporal=_to_volume(result.add_(part)))
        part.copy_(_from_volume(mixed))


def _along_time(work: Work, conv: Any, norm: Any, clip: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Norm over the whole clip, SiLU, convolution over three frames: results for some rows of all maps at a time."""
    mean, var = _moments(work, clip, norm.num_groups)
    weight, bias = (tensor.to(_precise(clip)) for tensor in work.affine(norm, clip))
    for some in work.over(clip.shape[2], _RES_MAPS, clip[:, :, 0]):
        # What a normalisation over groups does with given statistics is one over channels, computed in float32.
        inputs = F.batch_norm(clip[:, :, some], mean, var, weight, bias, eps=norm.eps)
        yield some, _from_volume(conv(_to_volume(F.silu(inputs, inplace=True))))


def _moments(work: Work, clip: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel's group over a whole clip [T, C, H, W]: float32 [C] each, for half too."""
    frames: list[tuple[torch.Tensor, ...]] = []
    for some in work.over(len(clip), 3, clip[0]):
        part = rearrange(clip[some], "t (g c) h w -> t g (c h w)", g=groups)
        # Frame by frame, so that the sums do not depend on the chunks.
        frames += [torch.var_mean(part.to(_precise(clip)), dim=2, correction=0)]
    var, mean = (torch.cat(moments) for moments in zip(*frames, strict=True))
    # Of parts of equal size: the mean of their variances, and the variance of their means.
    whole = mean.mean(0), var.mean(0) + mean.var(0, correction=0)
    average, variance = (moment.repeat_interleave(clip.shape[1] // groups) for moment in whole)
    return average, variance


def _precise(x: torch.Tensor) -> torch.dtype:
    """What sums over a tensor are computed in: float32, or x's own where that is more."""
    return torch.promote_types(x.dtype, torch.float32)


def _to_volume(x: torch.Tensor) -> torch.Tensor:
    return rearrange(x, "t c h w -> 1 c t h w")


def _from_volume(x: torch.Tensor) -> torch.Tensor:
    return rearrange(x, "1 c t h w -> t c h w")


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
    frames, height = len(rows), x.shape[2]
    (spatial_block,), (temporal_block,) = layer.transformer_blocks, layer.time_stack
    flat = x.flatten(2).transpose(1, 2)
    spatial = x.new_empty(flat.shape)
    said = _said(spatial_block, context)
    for some in work.over(len(x), _SPATIAL_MAPS, x[0]):
        tokens = layer.proj_in(rearrange(layer.norm(x[some]), "t c h w -> t (h w) c"))
        spatial[some] = _block(spatial_block, tokens, said[some], options)

    said = _said(temporal_block, (context if time_context is None else time_context)[::frames])
    embedded = position.embedded(rows, x, layer.time_pos_embed)
    for video, start in enumerate(range(0, len(x), frames)):
        clip = spatial[start : start + frames]
        temporal = _positioned(work, position, clip, embedded, height)
        for some in work.over(clip.shape[1], _TEMPORAL_MAPS, clip[:, 0]):
            # [positions, frames, C]: a copy of the part, which then may be written over.
            tokens = temporal[:, some].transpose(0, 1).contiguous()
            tokens = _block(temporal_block, tokens, said[video], options)
            mixed = layer.time_mixer(x_spatial=clip[:, some], x_temporal=tokens.transpose(0, 1))
            flat[start : start + frames, some] += layer.proj_out(mixed)
    return x


def _positioned(work: Work, position: Any, clip: torch.Tensor, embedded: torch.Tensor, height: int) -> torch.Tensor:
    """Positions added and neighbours mixed by the 3-D convolution: [T, H · W, C] to as many."""
    frames = len(clip)
    out = torch.empty_like(clip)
    for some in work.over(frames, _CONV_MAPS, clip[0], halo=2):
        # Beyond an end of the clip lies its mirror image; of a single frame, that frame.
        last = frames - 1
        around = [max(min(abs(i), 2 * last - i, last), 0) for i in range(some.start - 1, some.stop + 1)]
        inner = rearrange(clip[around] + embedded[around, None], "t (h w) c -> t h w c", h=height)
        volume = rearrange(_mirror_edges(inner), "t h w c -> 1 c t h w")
        out[some] = rearrange(position.conv(volume), "1 c t h w -> t (h w) c")
    return out


def _mirror_edges(x: torch.Tensor) -> torch.Tensor:
    """One cell more on each side of [T, H, W, C] in height and width, mirrored at the edge; of one cell, that cell."""
    for axis in (1, 2):
        last = x.shape[axis] - 1
        ends = x.narrow(axis, min(1, last), 1), x.narrow(axis, max(last - 1, 0), 1)
        x = torch.cat([ends[0], x, ends[1]], axis)
    return x


def _said(block: Any, token: torch.Tensor) -> torch.Tensor:
    """What cross-attention says of a single token, whatever is asked: softmax over one key is 1."""
    said: torch.Tensor = block.attn2.to_out(block.attn2.to_v(token))
    return said


def _block(block: Any, x: torch.Tensor, said: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """The host's transformer block on [n, tokens, C], written over x; `said` is its cross-attention."""
    if block.ff_in:
        x += block.ff_in(block.norm_in(x))
    x += block.attn1(block.norm1(x), transformer_options=options)
    x += said
    x += block.ff(block.norm3(x))
    return x


def upsample(work: Work, layer: Any, x: torch.Tensor, output_shape: Any = None) -> torch.Tensor:
    """The host's upsampling, some frames at a time. `output_shape` is the host's: of the map to meet."""
    height, width = (2 * x.shape[2], 2 * x.shape[3]) if output_shape is None else output_shape[2:4]
    out = x.new_empty(x.shape[0], layer.out_channels, height, width)
    for some in work.over(len(x), 3, out[0]):
        out[some] = type(layer).forward(layer, x[some], output_shape)
    return out
