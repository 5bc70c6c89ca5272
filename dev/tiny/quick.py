"""Arithmetic that is quick on a CPU.

Group normalisation, for torch's own takes two thirds of a training step to find its gradient; and half precision, where
the processor knows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F


def half_precision() -> torch.autocast:
    """Products and convolutions in bfloat16: half the time with AVX-512, many times as long without."""
    return torch.autocast("cpu", torch.bfloat16, enabled="AVX512" in torch.backends.cpu.get_cpu_capability())


@contextmanager
def quick_group_norms() -> Iterator[None]:
    """`torch.nn.functional.group_norm` is `group_norm` as long as this lasts."""
    usual = F.group_norm
    F.group_norm = group_norm  # type: ignore[assignment]
    try:
        yield
    finally:
        F.group_norm = usual


def group_norm(
    x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """As torch's of [N, C, …], in float32 at least."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    with torch.autocast("cpu", enabled=False):  # it would take sums of squares in half precision
        return _GroupNorm.apply(wide, groups, weight, bias, eps).to(x.dtype)  # type: ignore[no-untyped-call]


class _GroupNorm(torch.autograd.Function):
    """Sums over channels first, then over the channels of a group: two readings of the maps, one writing."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> torch.Tensor:
        count, channels = x.shape[:2]
        maps = x.reshape(count, groups, -1)
        # torch's var_mean takes as long as a convolution.
        mean = maps.mean(-1)
        variance = torch.linalg.vecdot(maps, maps) / maps.shape[-1] - mean * mean
        scale = (variance.clamp(min=0) + eps).rsqrt()
        ctx.save_for_backward(x, mean, scale, weight)
        each = channels // groups
        factor = scale.repeat_interleave(each, 1) * weight
        offset = bias - mean.repeat_interleave(each, 1) * factor
        of_channels = (count, channels) + (1,) * (x.dim() - 2)
        return torch.addcmul(offset.view(of_channels), x, factor.view(of_channels))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        x, mean, scale, weight = ctx.saved_tensors
        (count, channels), groups = x.shape[:2], mean.shape[1]
        each = channels // groups
        maps, out = x.reshape(count, channels, -1), gradient.to(x.dtype).reshape(count, channels, -1)
        total = out.sum(-1)
        by_group = (count, groups, each)
        scale, mean = scale[..., None], mean[..., None]
        # Σ gradient · x̂ of each channel.
        along = ((torch.linalg.vecdot(out, maps)).view(by_group) - mean * total.view(by_group)) * scale
        size = each * maps.shape[-1]
        weights = weight.view(1, groups, each)
        level = (total.view(by_group) * weights).sum(-1, keepdim=True) / size
        slope = (along * weights).sum(-1, keepdim=True) / size

        def of_channels(values: torch.Tensor) -> torch.Tensor:
            return values.expand(by_group).reshape(count, channels, 1)

        tilt = scale * scale * slope
        back = torch.addcmul(of_channels(tilt * mean - scale * level), maps, of_channels(-tilt))
        back.addcmul_(out, of_channels(scale * weights))
        return back.view(x.shape), None, along.reshape(count, channels).sum(0), total.sum(0), None
