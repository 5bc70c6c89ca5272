"""Maps that wait in main memory."""

import pytest
import torch

from exvideo_core.chunked import Parked, work


@pytest.mark.parametrize("frames_each", [1, 2, 3, 100])
def test_any_part_of_what_was_parked_comes_back(monkeypatch, frames_each):
    x = torch.randn(7, 4, 2, 3, generator=torch.Generator().manual_seed(0)).half()
    monkeypatch.setattr(work, "BLOCK", frames_each * x[0].numel() * x.element_size())
    kept, expected = Parked(x), x.clone()
    x.zero_()
    assert kept.shape == expected.shape
    for start in range(7):
        for stop in range(start + 1, 8):
            assert torch.equal(kept[start:stop], expected[start:stop])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 128), (128, 128)])
def test_memory_that_comes_in_powers_of_two_is_hardly_wasted(height, width):
    """By maps of SVD's first level, 128 frames in half precision; without their memory."""
    x = torch.empty(128, 320, height, width, dtype=torch.float16, device="meta")
    sizes = [block.numel() * block.element_size() for block in torch.split(x, work.frames_in_a_block(x))]
    assert sum(1 << (size - 1).bit_length() for size in sizes) < 1.1 * sum(sizes)
