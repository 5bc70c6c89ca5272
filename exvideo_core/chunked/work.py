"""How a pass is done, and the inputs that are only fetched, or made, as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..budget import MIB, chunks

Affine = Callable[[Any, torch.Tensor], AbstractContextManager[tuple[torch.Tensor, torch.Tensor]]]
"""Lends weight and bias of a module as they act on a tensor, wherever and however they are stored, to a `with`. One at
a time, but for those that are at hand: the next may be lent in the same place."""
AtHand = Callable[..., AbstractContextManager[None]]
"""Given a tensor and modules, keeps what these do to tensors like it where it is, for the length of a `with`."""
Arithmetic = Callable[..., torch.Tensor]
"""What is done to one chunk."""
BLOCK = 64 * MIB
"""Bytes of main memory that maps are parked in at a time."""


class Source(Protocol):
    """Maps [frames, C, H, W] that can be asked for some frames at a time; a tensor is one."""

    @property
    def shape(self) -> torch.Size: ...

    def __getitem__(self, some: slice) -> torch.Tensor: ...


@dataclass
class Work:
    """How a pass is done.

    Attributes:
        budget: bytes of working memory beside the maps that a layer has to hold; None works on all at once.
        affine: see `Affine`.
        at_hand: see `AtHand`; for what several chunks need.
        park: keep skip connections in main memory until they are needed.
        pin: in memory that is page-locked, which the device copies from while it works on.
        check: called before each chunk; raises to end the pass there.
        compile: makes a chunk's arithmetic faster, where nobody looks at the host's options; None leaves it as it is.
        layout: of the maps in memory; channels last is what matrix units convolve at full rate.
        pending: inputs of the next ResNet block, kept apart instead of concatenated along their channels.
    """

    budget: int | None = None
    affine: Affine = lambda module, x: nullcontext((module.weight, module.bias))
    at_hand: AtHand = lambda x, *modules: nullcontext()
    park: bool = False
    pin: bool = False
    check: Callable[[], None] = lambda: None
    compile: Callable[[Arithmetic], Arithmetic] | None = None
    layout: torch.memory_format = torch.contiguous_format
    pending: list[Source] = field(default_factory=list)

    def empty(self, like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Room for maps of this shape, in the layout of all."""
        return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=self.layout)

    def compiled(self, arithmetic: Arithmetic) -> Arithmetic:
        """The same, as fast as is wanted."""
        return self.compile(arithmetic) if self.compile else arithmetic

    def over(self, count: int, maps: float, one: torch.Tensor, halo: int = 0) -> Iterator[slice]:
        """Slices of `count` entries, each of which takes `maps` times the bytes of `one`."""
        for part in chunks(count, round(maps * one.numel() * one.element_size()), self.budget, halo):
            self.check()
            yield part


class Parked:
    """Maps in main memory, in blocks of some frames.

    Page-locked memory comes in powers of two, and stays with torch for the next that ask for as much: maps of SVD's
    widths in one piece each would take 1.6 times their size.

    Args:
        x: all maps.
        pin: whether to page-lock the memory, as far as there is enough that can be.
    """

    def __init__(self, x: torch.Tensor, pin: bool = False):
        self._device, self._shape = x.device, x.shape
        by_channels = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        self._layout = torch.channels_last if by_channels else torch.contiguous_format
        self._frames = frames_in_a_block(x)
        self._blocks = [_in_main_memory(block, pin) for block in torch.split(x, self._frames)]

    @property
    def shape(self) -> torch.Size:
        return self._shape

    def __getitem__(self, some: slice) -> torch.Tensor:
        start, stop, _ = some.indices(self._shape[0])
        shape, dtype = (stop - start, *self._shape[1:]), self._blocks[0].dtype
        out = torch.empty(shape, dtype=dtype, device=self._device, memory_format=self._layout)
        for number in range(start // self._frames, -(-stop // self._frames)):
            first = number * self._frames
            block = self._blocks[number][max(start - first, 0) : stop - first]
            out[max(first - start, 0) :][: len(block)].copy_(block, non_blocking=block.is_pinned())
        return out


def frames_in_a_block(x: torch.Tensor) -> int:
    """How many frames of maps are parked together."""
    return max(BLOCK // (x[0].numel() * x.element_size()), 1)


def _in_main_memory(x: torch.Tensor, pin: bool) -> torch.Tensor:
    # In the layout of x, which otherwise would be laid out anew on the device first.
    try:
        kept = torch.empty_like(x, device="cpu", pin_memory=pin)
    except RuntimeError:
        if not pin:
            raise
        # No more can be locked: the device waits for its copies.
        kept = torch.empty_like(x, device="cpu")
    # A copy that is not waited for runs in the order of the other work, so x may be written over at once.
    return kept.copy_(x, non_blocking=kept.is_pinned())


class Upsampled:
    """Maps that are upsampled when asked for, a quarter of the memory until then.

    Args:
        upsample: from some maps [n, C, H, W] to larger ones.
        x: all maps.
        shape: of the result.
    """

    def __init__(self, upsample: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, shape: torch.Size):
        self._upsample, self._x, self._shape = upsample, x, shape

    @property
    def shape(self) -> torch.Size:
        return self._shape

    def __getitem__(self, some: slice) -> torch.Tensor:
        return self._upsample(self._x[some])


def is_led(module: Any) -> bool:
    """Whether others have put something in the way of a module: a hook, or another forward pass.

    Newer hosts apply a LoRA so where weights are to be left alone, and give the module its own forward back after.
    """
    forward = vars(module).get("forward")
    led = forward is not None and getattr(forward, "__func__", None) is not type(module).forward
    return led or bool(module._forward_hooks or module._forward_pre_hooks)


def convolves_otherwise(conv: Any) -> bool:
    """Whether others have put another convolution in the place of a layer's own, or other edges than zeros, as nodes
    for seamless textures do."""
    return "_conv_forward" in vars(conv) or conv.padding_mode != "zeros"


def is_whole(weight: Any) -> bool:
    """Whether a weight is an ordinary tensor, of 16 bits a number at least."""
    return type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.element_size() > 1


def channels_are_last(x: torch.Tensor) -> bool:
    """Whether the channels of one position of maps [n, C, H, W] lie together in memory.

    Such maps go the way that is fastest for them; not where gradients are wanted, for they are written over.
    """
    return x.stride(1) == 1 and not x.is_contiguous() and not torch.is_grad_enabled()


def stand_in(like: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A tensor of this shape without memory, for code that only looks at the shape: all zeros in one place."""
    return like.new_zeros(()).expand(shape)
