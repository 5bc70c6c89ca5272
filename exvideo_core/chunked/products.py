"""Matrix products and convolutions over time in the form that processors are fastest at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch.overrides import TorchFunctionMode

from .norms import precise
from .work import is_whole

_LIBRARIES: bool = (
    hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
)
"""Whether torch has both libraries for processors; asked here, as a compiler cannot."""


def suit(x: torch.Tensor) -> bool:
    """Whether what is done to x may be a sum of products.

    That is on a processor, without gradients, and in a precision that rounds a sum on the way no more than a product.
    """
    return x.is_cpu and x.dtype == precise(x) and not torch.is_grad_enabled()


def by_convolutions(x: torch.Tensor) -> AbstractContextManager[Any]:
    """For a `with` in which all linear layers of tensors like x are convolutions, where those are as fast or faster."""
    return _ByConvolutions() if _convolutions_are_quick(x) else nullcontext()


def over_time(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A convolution over three frames, zeros before and after the clip: a half to 0.8 of the time of one over volumes.

    Args:
        x: [T, C, H, W].
        kernel: [D, C, 3, 1, 1].

    Returns:
        [T, D, H, W].
    """
    height = x.shape[2]
    if _convolutions_are_quick(x):
        # Along the frames of each place: over rows of places, the result would depend on how many there are.
        places = rearrange(x, "t c h w -> 1 c (h w) t").contiguous(memory_format=torch.channels_last)
        along = kernel[..., 0].mT.contiguous(memory_format=torch.channels_last)
        return rearrange(_convolved(places, along, bias, (0, 1)), "1 c (h w) t -> t c h w", h=height)
    before, here, after = kernel[..., 0, 0].unbind(2)
    tokens = rearrange(x, "t c h w -> (t h w) c")
    frame = len(tokens) // len(x)
    out = F.linear(tokens, here, bias)
    if len(x) > 1:
        out[frame:].addmm_(tokens[:-frame], before.T)
        out[:-frame].addmm_(tokens[frame:], after.T)
    return rearrange(out, "(t h w) c -> t c h w", t=len(x), h=height)


class _ByConvolutions(TorchFunctionMode):
    """Computes linear layers as convolutions of one row of places with a kernel of one place.

    The library of torch's products, MKL, takes up to 2.7 times as long on AMD's processors as that of its convolutions,
    oneDNN, does. And MKL rounds few rows differently from many, so that a result would depend on the chunks.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.linear and not kwargs:
            x, weight, bias = (*args, None)[:3]
            if x.numel() and _is_plain(x, weight, bias) and _convolutions_are_quick(x):
                # Contiguous, as what torch makes is: others may look at it in another shape.
                rows = x.reshape(1, 1, -1, x.shape[-1]).contiguous().permute(0, 3, 1, 2)
                out = _convolved(rows, weight[:, :, None, None], bias, (0, 0))
                return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)
        return function(*args, **(kwargs or {}))


def _is_plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether a linear layer is one that a convolution can be; others are torch's, and what is wrong is told by it."""
    fits = is_whole(weight) and weight.dim() == 2 and weight.dtype == x.dtype and x.shape[-1:] == weight.shape[1:]
    return fits and len(weight) > 0 and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype))


def _convolved(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, int]
) -> torch.Tensor:
    """A convolution of maps [1, C, H, W] by oneDNN, which torch by itself only asks for larger ones."""
    convolve = torch.ops.mkldnn._convolution_pointwise
    # The library reads a bias as if its numbers lay side by side.
    bias = None if bias is None else bias.contiguous()
    out: torch.Tensor = convolve(x, kernel, bias, padding, (1, 1), (1, 1), 1, "none", [], "")
    return out


def _convolutions_are_quick(x: torch.Tensor) -> bool:
    """Whether torch can convolve x by oneDNN, on a processor for which its products are MKL's."""
    return _LIBRARIES and x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled()
