"""Chains of segments: what is kept of them, and what is shown of a clip that is being made."""

import pytest
import torch

from exvideo_core.long_sampling import sample_chain
from exvideo_core.plan import chain_segments
from exvideo_core.types import ExVideoError

SEGMENTS = chain_segments(13, 5, 1, 0)
START = torch.full((13, 4, 2, 2), torch.nan)


class Kept(dict):
    """A store in main memory."""

    def load(self, segment):
        return self.get(segment.number)

    def save(self, segment, latents):
        self[segment.number] = latents.clone()


def sample(segment, _picture, start):
    made = torch.randn(start.shape, generator=torch.Generator().manual_seed(segment.number)) + segment.number
    return torch.cat([start[: segment.pinned], made[segment.pinned :]])


def no_picture(_latents, _frame):
    return torch.zeros(1, 16, 16, 3)


def test_segments_are_kept_with_the_colours_of_the_first():
    """So that a chain that was stopped goes on to the same bits."""
    kept = Kept()
    whole = sample_chain(SEGMENTS, START, sample, no_picture, kept, match=True)
    assert len(kept) == len(SEGMENTS) == 3
    del kept[2]
    assert torch.equal(sample_chain(SEGMENTS, START, sample, no_picture, kept, match=True), whole)


def test_nothing_is_shown_of_what_has_yet_to_be_made():
    """Neither to those who are told of a segment, nor to the decoder of the next one's first frame."""
    told, asked = [], []

    def first_frame(latents, frame):
        asked.append((len(latents), frame, bool(latents.isfinite().all())))
        return no_picture(latents, frame)

    def note(segment, clip):
        told.append((segment.number, len(clip), bool(clip.isfinite().all())))

    sample_chain(SEGMENTS, START, sample, first_frame, on_segment=note)
    assert told == [(0, 5, True), (1, 9, True), (2, 13, True)]
    assert asked == [(5, 4, True), (9, 8, True)]


def test_a_segment_that_is_not_finite_ends_the_chain():
    """All that come after it would begin with its frames; those before are kept."""
    kept, asked = Kept(), []

    def spoilt(segment, picture, start):
        asked.append(segment.number)
        return sample(segment, picture, start) * (torch.inf if segment.number == 1 else 1)

    with pytest.raises(ExVideoError, match="Segment 2 of 3 came out as numbers that are not finite"):
        sample_chain(SEGMENTS, START, spoilt, no_picture, kept)
    assert asked == [0, 1]
    assert list(kept) == [0]
