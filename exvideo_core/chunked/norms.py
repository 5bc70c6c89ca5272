"""Group normalisation of maps, also of those whose channels lie together, and with statistics of whole clips.

PyTorch's own lays such maps out anew on a GPU, twice, which takes longer than the convolution that follows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange

from . import fused
from .work import Affine, Work, channels_are_last

_STATISTICS_MAPS = 5
"""Working memory in maps. Generous: a test counts that passes stay within."""


def normalised(affine: Affine, norm: Any, x: torch.Tensor, silu: bool = False) -> torch.Tensor:
    """Single maps [n, C, H, W] through a GroupNorm, each with its own statistics; with `silu`, SiLU of that."""
    if not channels_are_last(x):
        out: torch.Tensor = norm(x)
        return F.silu(out, inplace=not torch.is_grad_enabled()) if silu else out
    # On a processor, too, where torch's own shares out the sums of several maps otherwise than those of one, so that
    # the result would depend on the chunks, and where it takes up to 12 times as long if channels are few.
    mean, var = (_of_channels(of_group, x) for of_group in _moments(x, norm.num_groups))
    with affine(norm, x) as lent:
        weight, bias = (tensor.to(precise(x)) for tensor in lent)
        steps = _steps(x, mean, var, weight, bias, norm.eps)
    return fused.normalised(x, *steps, silu)


def activated(x: torch.Tensor, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> torch.Tensor:
    """Maps of a clip, or parts of them, normalised with statistics of the whole clip, and SiLU of that.

    Args:
        x: [n, C, H, W].
        mean, var: of each channel's group, as from `clip_moments`.
        weight, bias, eps: of the normalisation, [C] in float32.
    """
    # Apple's GPUs end the process where such a call mixes precisions (pytorch issue 154887).
    if torch.is_grad_enabled() or x.device.type == "mps":
        mean, scale, bias = (v[:, None, None] for v in (mean, weight * (var + eps).rsqrt(), bias))
        return F.silu(((x.to(mean) - mean) * scale + bias).to(x))
    # In float32 not by the call below: a processor rounds parts of maps differently from whole ones there.
    if channels_are_last(x) or x.dtype == precise(x):
        return fused.normalised(x, *_steps(x, mean, var, weight, bias, eps), silu=True)
    # What a normalisation over groups does with given statistics is one over channels, computed in float32.
    return F.silu(F.batch_norm(x, mean, var, weight, bias, eps=eps), inplace=True)


def _steps(
    x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A normalisation as a mean, a scale and a shift in x's precision: [C, 1, 1] or [n, C, 1, 1] each.

    What the mean loses by rounding is in the shift: a mean far from zero, by the deviation, adds nothing to the error.
    """
    scale, rounded = weight * (var + eps).rsqrt(), mean.to(x)
    steps = rounded, scale.to(x), (bias - (mean - rounded) * scale).to(x)
    first, second, third = (step[..., None, None] for step in steps)
    return first, second, third


def clip_moments(work: Work, clip: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel's group over a whole clip [T, C, H, W]: float32 [C] each, for half too."""
    # Frame by frame, so that the sums do not depend on the chunks.
    frames = [_moments(clip[some], groups) for some in work.over(len(clip), _STATISTICS_MAPS, clip[0])]
    mean, var = (torch.cat(of_all) for of_all in zip(*frames, strict=True))
    # Of parts of equal size: the mean of their variances, and the variance of their means.
    whole = mean.mean(0), var.mean(0) + mean.var(0, correction=0)
    average, variance = (_of_channels(of_group, clip) for of_group in whole)
    return average, variance


def precise(x: torch.Tensor) -> torch.dtype:
    """What sums over a tensor are computed in: float32, or x's own where that is more."""
    return torch.promote_types(x.dtype, torch.float32)


def _moments(x: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each group of channels of each map, [n, groups], in float32 at least."""
    if channels_are_last(x):
        places, wide = rearrange(x, "t c h w -> t (h w) c"), precise(x)
        mean = _of_groups(places.mean(1, dtype=wide), groups)
        if x.dtype == wide:
            off = places - _of_channels(mean, x)[:, None]
            return mean, _of_groups(off.square_().mean(1), groups)
        # Sums over places, which read half precision and write float32, without a copy of x on the way.
        square = torch.linalg.vector_norm(places, dim=1, dtype=wide) ** 2 / places.shape[1]
        return mean, (_of_groups(square, groups) - mean**2).clamp_min(0)
    values = rearrange(x, "t (g c) h w -> t g (c h w)", g=groups).to(precise(x))
    if values.device.type != "cpu":
        var, mean = torch.var_mean(values, dim=-1, correction=0)
        return mean, var
    # Two readings: there torch's one takes as long as a convolution.
    mean = values.mean(-1)
    return mean, (values - mean[..., None]).square_().mean(-1)


def _of_groups(of_channel: torch.Tensor, groups: int) -> torch.Tensor:
    """Means over each group of channels, of [n, C]."""
    return of_channel.reshape(len(of_channel), groups, -1).mean(-1)


def _of_channels(of_group: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What is known of groups, for each channel of maps [n, C, H, W]."""
    return of_group.repeat_interleave(x.shape[1] // of_group.shape[-1], -1)
