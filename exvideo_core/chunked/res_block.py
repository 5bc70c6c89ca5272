"""ResNet blocks of the UNet and of the autoencoder: a spatial one, a temporal one, mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange

from .work import Source, Work

# Working memory in maps of the block's own width. Generous: a test counts that passes stay within.
_MAPS = 6
_STATISTICS_MAPS = 5

Spatial = Callable[[torch.Tensor, slice], torch.Tensor]
Mix = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def res_block(work: Work, block: Any, x: torch.Tensor, emb: torch.Tensor, frames: int) -> torch.Tensor:
    """The UNet's ResNet block.

    Args:
        block: the host's `VideoResBlock` of its UNet.
        x: [videos · frames, C, H, W]; without channels where `work.pending` holds the inputs.
        emb: [videos · frames, D].
    """

    def mix(spatial: torch.Tensor, temporal: torch.Tensor) -> torch.Tensor:
        mixed = block.time_mixer(x_spatial=_to_volume(spatial), x_temporal=_to_volume(temporal))
        return _from_volume(mixed)

    parts: list[Source] = work.pending or [x]
    work.pending = []
    run = work.compiled(image_chunk)
    out = spatial_res_block(work, parts, x, block.out_channels, lambda part, some: run(block, part, emb[some]))
    for start in range(0, len(out), frames):
        video = slice(start, start + frames)
        temporal_res_block(work, block.time_stack, out[video], block.time_stack.emb_layers(emb[video]), mix)
    return out


def image_chunk(block: Any, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
    """The host's own for single frames."""
    out: torch.Tensor = block._forward(x, emb)
    return out


def spatial_res_block(work: Work, parts: list[Source], like: torch.Tensor, channels: int, run: Spatial) -> torch.Tensor:
    """What a block does to single frames, some of them at a time.

    Args:
        parts: inputs, to be concatenated along their channels; taken out of the list.
        like: a tensor of the result's kind.
        channels: of the result.
        run: given inputs, and which frames they are.
    """
    frames, _, *size = parts[0].shape
    out = like.new_empty(frames, channels, *size)
    widest = max(sum(part.shape[1] for part in parts), channels)
    for some in work.over(frames, _MAPS * widest / channels, out[0]):
        # Not named: whatever is, lives on beside the next chunk's.
        out[some] = run(torch.cat([part[some] for part in parts], 1) if len(parts) > 1 else parts[0][some], some)
    parts.clear()
    return out


def temporal_res_block(work: Work, stack: Any, clip: torch.Tensor, shift: torch.Tensor | None, mix: Mix) -> None:
    """The temporal block on one video, in place: convolutions over time, normalisations over the whole clip.

    Args:
        stack: the host's 3-D `ResBlock`.
        clip: [T, C, H, W].
        shift: [T, C], added between the convolutions.
        mix: of spatial and temporal maps.
    """
    norm_in, _, conv_in = stack.in_layers
    norm_out, *_, conv_out = stack.out_layers
    hidden = torch.empty_like(clip)
    for some, result in _along_time(work, conv_in, norm_in, clip):
        hidden[:, :, some] = result if shift is None else result.add_(shift[:, :, None, None])
    for some, result in _along_time(work, conv_out, norm_out, hidden):
        part = clip[:, :, some]
        part.copy_(mix(part, result.add_(part)))


def _along_time(work: Work, conv: Any, norm: Any, clip: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Norm over the whole clip, SiLU, convolution over three frames: results for some rows of all maps at a time."""
    mean, var = moments(work, clip, norm.num_groups)
    weight, bias = (tensor.to(precise(clip)) for tensor in work.affine(norm, clip))
    run = work.compiled(normalised_chunk)
    for some in work.over(clip.shape[2], _MAPS, clip[:, :, 0]):
        yield some, run(conv, clip[:, :, some], mean, var, weight, bias, norm.eps)


def normalised_chunk(
    conv: Any, x: torch.Tensor, mean: Any, var: Any, weight: Any, bias: Any, eps: float
) -> torch.Tensor:
    # Apple's GPUs end the process where such a call mixes precisions (pytorch issue 154887).
    if torch.is_grad_enabled() or x.device.type == "mps":
        mean, scale, bias = (v[:, None, None] for v in (mean, weight * (var + eps).rsqrt(), bias))
        return _from_volume(conv(_to_volume(F.silu(((x.to(mean) - mean) * scale + bias).to(x)))))
    # What a normalisation over groups does with given statistics is one over channels, computed in float32.
    inputs = F.batch_norm(x, mean, var, weight, bias, eps=eps)
    return _from_volume(conv(_to_volume(F.silu(inputs, inplace=True))))


def moments(work: Work, clip: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel's group over a whole clip [T, C, H, W]: float32 [C] each, for half too."""
    frames: list[tuple[torch.Tensor, ...]] = []
    for some in work.over(len(clip), _STATISTICS_MAPS, clip[0]):
        part = rearrange(clip[some], "t (g c) h w -> t g (c h w)", g=groups)
        # Frame by frame, so that the sums do not depend on the chunks.
        frames += [_variance_and_mean(part.to(precise(clip)))]
    var, mean = (torch.cat(of_all) for of_all in zip(*frames, strict=True))
    # Of parts of equal size: the mean of their variances, and the variance of their means.
    whole = mean.mean(0), var.mean(0) + mean.var(0, correction=0)
    average, variance = (of_group.repeat_interleave(clip.shape[1] // groups) for of_group in whole)
    return average, variance


def _variance_and_mean(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Over the last dimension."""
    if values.device.type != "cpu":
        variance, mean = torch.var_mean(values, dim=-1, correction=0)
        return variance, mean
    # Two readings: there torch's one takes as long as a convolution.
    mean = values.mean(-1)
    return (values - mean[..., None]).square_().mean(-1), mean


def precise(x: torch.Tensor) -> torch.dtype:
    """What sums over a tensor are computed in: float32, or x's own where that is more."""
    return torch.promote_types(x.dtype, torch.float32)


def _to_volume(x: torch.Tensor) -> torch.Tensor:
    return rearrange(x, "t c h w -> 1 c t h w")


def _from_volume(x: torch.Tensor) -> torch.Tensor:
    return rearrange(x, "1 c t h w -> t c h w")
