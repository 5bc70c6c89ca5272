"""How a pass is done, and the inputs that are only fetched, or made, as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..budget import chunks

Affine = Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Weight and bias of a normalisation module as they act on a tensor, wherever and however they are stored."""
Arithmetic = Callable[..., torch.Tensor]
"""What is done to one chunk."""


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
        park: keep skip connections in main memory until they are needed.
        check: called before each chunk; raises to end the pass there.
        compile: makes a chunk's arithmetic faster, where nobody looks at the host's options; None leaves it as it is.
        pending: inputs of the next ResNet block, kept apart instead of concatenated along their channels.
    """

    budget: int | None = None
    affine: Affine = lambda module, x: (module.weight, module.bias)
    park: bool = False
    check: Callable[[], None] = lambda: None
    compile: Callable[[Arithmetic], Arithmetic] | None = None
    pending: list[Source] = field(default_factory=list)

    def compiled(self, arithmetic: Arithmetic) -> Arithmetic:
        """The same, as fast as is wanted."""
        return self.compile(arithmetic) if self.compile else arithmetic

    def over(self, count: int, maps: float, one: torch.Tensor, halo: int = 0) -> Iterator[slice]:
        """Slices of `count` entries, each of which takes `maps` times the bytes of `one`."""
        for part in chunks(count, round(maps * one.numel() * one.element_size()), self.budget, halo):
            self.check()
            yield part


class Parked:
    """Maps in main memory, page-locked where they come from another device, so that it need not wait for them."""

    def __init__(self, x: torch.Tensor):
        self._device = x.device
        # Copies to and from run in the order of the other work, so x may be written over at once.
        self._kept = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=x.device.type != "cpu")
        self._kept.copy_(x, non_blocking=True)

    @property
    def shape(self) -> torch.Size:
        return self._kept.shape

    def __getitem__(self, some: slice) -> torch.Tensor:
        return self._kept[some].to(self._device, non_blocking=True)


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


def stand_in(like: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A tensor of this shape without memory, for code that only looks at the shape: all zeros in one place."""
    return like.new_zeros(()).expand(shape)
