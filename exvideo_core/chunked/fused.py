"""Elementwise arithmetic in one reading and one writing, on NVIDIA's GPUs; elsewhere in torch's steps.

Much of a pass in half precision is spent on moving maps to and from a GPU's memory. What compiles these kernels is
part of CUDA builds of torch, in about a third of a second each, kept on disk for the next time; if it fails, torch's
steps do it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

_GATED = """
template <typename T> T gated(T value, T gate) {
    const float x = gate;
    return static_cast<float>(value) * x * 0.5f * (1.0f + erff(x * 0.70710678f));
}
"""
_NORMALISED = """
template <typename T> T normalised(T x, T mean, T scale, T shift) {
    return (static_cast<float>(x) - static_cast<float>(mean)) * static_cast<float>(scale) + static_cast<float>(shift);
}
"""
_NORMALISED_SILU = """
template <typename T> T normalised_silu(T x, T mean, T scale, T shift) {
    const float centred = static_cast<float>(x) - static_cast<float>(mean);
    const float y = centred * static_cast<float>(scale) + static_cast<float>(shift);
    return y / (1.0f + expf(-y));
}
"""
log = logging.getLogger(__name__)


def gated(values: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """`values` · GELU(`gates`), which may be written over `values`."""
    kernel = _kernel(_GATED, 2, values.dtype) if _can_fuse(values) else None
    return kernel(values, gates) if kernel else values.mul_(F.gelu(gates))


def normalised(
    x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, silu: bool
) -> torch.Tensor:
    """(x - mean) · scale + shift, in x's layout; with `silu`, SiLU of that."""
    kernel = _kernel(_NORMALISED_SILU if silu else _NORMALISED, 4, x.dtype) if _can_fuse(x) else None
    if kernel:
        return kernel(x, mean, scale, shift)
    if torch.compiler.is_compiling():  # whose graphs would break at `out=`
        out = torch.addcmul(shift, x - mean, scale)
    else:
        out = torch.sub(x, mean, out=torch.empty_like(x))
        torch.addcmul(shift, out, scale, out=out)
    return F.silu(out, inplace=True) if silu else out


def _can_fuse(x: torch.Tensor) -> bool:
    return x.is_cuda and x.element_size() == 2 and not torch.version.hip and not torch.compiler.is_compiling()


@cache
def _kernel(code: str, inputs: int, dtype: torch.dtype) -> Callable[..., Any] | None:
    """The compiled function of so many tensors of a dtype, or None where it cannot be."""
    try:
        function: Callable[..., Any] = torch.cuda.jiterator._create_jit_fn(code)
        # Compiled when it is first called.
        function(*[torch.ones(8, dtype=dtype, device="cuda")] * inputs)
    except torch.cuda.OutOfMemoryError:  # which says nothing of the compiler, and is tried again in smaller chunks
        raise
    except Exception as error:
        # As a text: whoever keeps the record would keep by it all that the pass had.
        log.warning("ExVideo goes on without fused kernels, for this torch cannot compile them: %s", str(error))
        return None
    return function
