"""ResNet blocks of the UNet and of the autoencoder: a spatial one, a temporal one, mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from einops import rearrange

from . import products, winograd
from .norms import activated, clip_moments, normalised, precise
from .work import Affine, Source, Work, channels_are_last, convolves_otherwise

# Working memory in maps of the block's own width. Generous: a test counts that passes stay within.
_MAPS = 6

Spatial = Callable[[torch.Tensor, slice], torch.Tensor]


def res_block(work: Work, block: Any, x: torch.Tensor, emb: torch.Tensor, frames: int) -> torch.Tensor:
    """The UNet's ResNet block.

    Args:
        block: the host's `VideoResBlock` of its UNet.
        x: [videos · frames, C, H, W]; without channels where `work.pending` holds the inputs.
        emb: [videos · frames, D].
    """
    parts: list[Source] = work.pending or [x]
    work.pending = []
    # For all frames at once, as a processor rounds products of few rows differently from those of many.
    shift = block.emb_layers(emb)
    run = work.compiled(image_chunk)
    with work.at_hand(x, block.in_layers, block.out_layers, block.skip_connection):
        out = spatial_res_block(
            work, parts, x, block.out_channels, lambda part, some: run(work.affine, block, part, shift[some])
        )
    share = 1 - block.time_mixer.get_alpha(None, x.device).flatten()
    for start in range(0, len(out), frames):
        video = slice(start, start + frames)
        temporal_res_block(work, block.time_stack, out[video], block.time_stack.emb_layers(emb[video]), share)
    return out


def image_chunk(affine: Affine, block: Any, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The spatial block on single frames.

    Args:
        x: [n, C, H, W].
        shift: of the noise level and the clip's labels, added between the convolutions: [n, channels of the result].
    """
    norm_in, _, conv_in = block.in_layers
    norm_out, *_, conv_out = block.out_layers
    hidden = normalised(affine, norm_in, x, silu=True)
    with affine(conv_in, x) as (kernel, bias):
        convolved = winograd.over_maps if winograd.pays(hidden, conv_in) else conv_in._conv_forward
        hidden = convolved(hidden, kernel, None)
        hidden += (shift + bias)[..., None, None]
    hidden = normalised(affine, norm_out, hidden, silu=True)
    return winograd.convolved(affine, conv_out, hidden).add_(block.skip_connection(x))


def spatial_res_block(work: Work, parts: list[Source], like: torch.Tensor, channels: int, run: Spatial) -> torch.Tensor:
    """What a block does to single frames, some of them at a time.

    Args:
        parts: inputs, to be concatenated along their channels; taken out of the list.
        like: a tensor of the result's kind.
        channels: of the result.
        run: given inputs, and which frames they are.
    """
    frames, _, *size = parts[0].shape
    out = work.empty(like, (frames, channels, *size))
    widest = max(sum(part.shape[1] for part in parts), channels)
    for some in work.over(frames, _MAPS * widest / channels, out[0]):
        # Not named: whatever is, lives on beside the next chunk's.
        out[some] = run(torch.cat([part[some] for part in parts], 1) if len(parts) > 1 else parts[0][some], some)
    parts.clear()
    return out


def temporal_res_block(
    work: Work, stack: Any, clip: torch.Tensor, shift: torch.Tensor | None, share: torch.Tensor
) -> None:
    """The temporal block on one video, in place: convolutions over time, normalisations over the whole clip.

    Args:
        stack: the host's 3-D `ResBlock`.
        clip: [T, C, H, W].
        shift: [T, C], added between the convolutions.
        share: [1], of the temporal maps in the mixture with the spatial ones.
    """
    norm_in, _, conv_in = stack.in_layers
    norm_out, *_, conv_out = stack.out_layers
    hidden = torch.empty_like(clip)
    with work.at_hand(clip, conv_in), work.affine(conv_in, clip) as (kernel, bias):
        shift = (bias if shift is None else shift + bias)[..., None, None]
        for some, result in _along_time(work, norm_in, conv_in, clip, kernel, None):
            torch.add(result, shift, out=hidden[:, :, some])
    # Temporal maps are the spatial ones and what is added to them: so the mixture is these and a share of that.
    with work.affine(conv_out, clip) as lent:
        kernel, bias = (tensor * share.to(tensor) for tensor in lent)
    for some, result in _along_time(work, norm_out, conv_out, hidden, kernel, bias):
        clip[:, :, some] += result


def _along_time(
    work: Work, norm: Any, conv: Any, clip: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Norm over the whole clip, SiLU, convolution over three frames: results for some rows of all maps at a time."""
    mean, var = clip_moments(work, clip, norm.num_groups)
    with work.affine(norm, clip) as lent:
        scale = *(tensor.to(precise(clip), copy=True) for tensor in lent), norm.eps
    run = work.compiled(temporal_chunk)
    if channels_are_last(clip) and not clip.is_cpu:
        kernel = kernel.contiguous(memory_format=torch.channels_last_3d)
    for some in work.over(clip.shape[2], _MAPS, clip[:, :, 0]):
        yield some, run(conv, clip[:, :, some], (mean, var, *scale), kernel, bias)


def temporal_chunk(
    conv: Any, x: torch.Tensor, norm: Any, kernel: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Some rows of all maps of a clip: norm, SiLU and convolution over time."""
    x = activated(x, *norm)
    if x.is_cpu and not torch.is_grad_enabled() and not convolves_otherwise(conv):
        return products.over_time(x, kernel, bias)
    volume = rearrange(x, "t c h w -> 1 c t h w")
    return rearrange(conv._conv_forward(volume, kernel, bias), "1 c t h w -> t c h w")
