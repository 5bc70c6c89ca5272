"""Clips longer than an extension reaches: segments sampled one after the other, each going on from the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from .plan import Segment
from .types import ExVideoError


class SampleSegment(Protocol):
    """Samples one segment."""

    def __call__(self, segment: Segment, picture: torch.Tensor | None, start: torch.Tensor) -> torch.Tensor:
        """Latents [n, 4, h, w] of a segment.

        Args:
            segment: which.
            picture: its first frame, [1, H, W, 3]; None is the picture that the whole clip starts from.
            start: [n, 4, h, w]; the pinned frames as they are, the others as the clip starts.
        """
        ...


class Store(Protocol):
    """Where finished segments are kept."""

    def load(self, segment: Segment) -> torch.Tensor | None:
        """The new frames of a segment, if it was finished before."""
        ...

    def save(self, segment: Segment, latents: torch.Tensor) -> None:
        """Keep the new frames of a segment."""
        ...


class KeepNothing:
    """A store for those who want none."""

    def load(self, segment: Segment) -> None:
        return None

    def save(self, segment: Segment, latents: torch.Tensor) -> None:
        pass


def sample_chain(
    segments: Sequence[Segment],
    start: torch.Tensor,
    sample: SampleSegment,
    first_frame: Callable[[torch.Tensor, int], torch.Tensor],
    store: Store | None = None,
    match: bool = False,
    on_segment: Callable[[Segment, torch.Tensor], None] = lambda segment, clip: None,
) -> torch.Tensor:
    """Sample a clip segment by segment.

    Args:
        segments: as `plan.chain_segments` cuts the clip.
        start: what the clip starts from, [T, 4, h, w]; zeros where it is made from nothing.
        sample: samples one segment; pinned frames come back as they went in.
        first_frame: from the latents that there are, [up to T, 4, h, w], and a frame's number: that frame,
            [1, H, W, 3].
        store: where finished segments are kept, and found again.
        match: whether the new frames of each segment get the mean and deviation of the first segment, channel by
            channel, against drift.
        on_segment: told of each finished segment and the clip as far as it is.

    Returns:
        float32 [T, 4, h, w] in main memory.

    Raises:
        ExVideoError: a segment whose numbers are not finite.
    """
    store = KeepNothing() if store is None else store
    clip = start.detach().to("cpu", torch.float32, copy=True)
    for segment in segments:
        new = slice(*segment.new)
        made = store.load(segment)
        if made is None:
            picture = first_frame(clip[: segment.new.start], segment.frames.start) if segment.pinned else None
            made = sample(segment, picture, clip[slice(*segment.frames)].clone())[segment.pinned :].to(clip)
            # All segments after it would begin with these, and a run that kept them could not be gone on with.
            if not made.isfinite().all():
                raise ExVideoError(
                    f"Segment {segment.number + 1} of {len(segments)} came out as numbers that are not finite (NaN): "
                    "start ComfyUI with --fp32-unet and queue it again, which goes on from the segments before it if "
                    "there is a checkpoint_name. Or lower the guidance and the strengths of extension and LoRAs, which "
                    "makes another video, under another checkpoint_name."
                )
            if match and segment.pinned:
                made = _matched(made, clip[slice(*segments[0].frames)])
            store.save(segment, made)
        clip[new] = made
        on_segment(segment, clip[: segment.new.stop])
    return clip


def _matched(latents: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """Latents with the mean and deviation of others, channel by channel."""
    (std, mean), (wanted_std, wanted_mean) = (
        torch.std_mean(each, dim=(0, 2, 3), keepdim=True, correction=0) for each in (latents, to)
    )
    return (latents - mean) / std.clamp(min=1e-6) * wanted_std + wanted_mean
