import pytest
import torch

from exvideo_core.pinning import before_contrast, draw_to_pinned, pinned_frames, pinned_latent, with_ends
from exvideo_core.plan import draws
from exvideo_core.types import ExVideoError


def shifted(frames):
    """A clip, the same shifted, and the shift, which can be divided by."""
    right, shift = torch.randn(frames, 4, 2, 2), 1 + torch.rand(1, 4, 2, 2)
    return right, right + shift, shift


def moving_evenly(frames):
    return torch.randn(4, 2, 2) + torch.arange(frames).view(-1, 1, 1, 1) * torch.randn(4, 2, 2)


@pytest.mark.parametrize("jumps", [False, True])
def test_new_frames_go_on_from_the_last_pinned_one(jumps):
    """A clip that the model has right but for a shift, of all or of what is new, begins as it was pinned and ends as
    the model has it."""
    right, (_, _, shift) = moving_evenly(40), shifted(40)
    wrong = right + shift
    if jumps:
        wrong[:5] -= shift
    mended = draw_to_pinned(wrong, right, range(5), 16)
    assert torch.equal(mended[:5], wrong[:5])
    off = ((mended - right)[5:] / shift).mean((1, 2, 3))
    assert off[0] < 0.02
    assert (off.diff() >= -1e-5).all()
    torch.testing.assert_close(off[16:], torch.ones(19))
    # Nothing is done where the model is right, and nothing is left where there are no new frames.
    torch.testing.assert_close(draw_to_pinned(right, right, range(5), 16), right)
    assert torch.equal(draw_to_pinned(wrong[:3], right[:3], range(3), 16), wrong[:3])


def test_a_clip_is_led_to_both_of_its_ends():
    right, wrong, shift = shifted(40)
    off = ((draw_to_pinned(wrong, right, (0, 39), 10) - right) / shift).mean((1, 2, 3))
    torch.testing.assert_close(off, off.flip(0), rtol=0, atol=1e-5)
    assert off[1] < 0.03
    torch.testing.assert_close(off[11:29], torch.ones(18))


def test_between_ends_that_are_near_all_is_led_to_them():
    right, wrong, _ = shifted(9)
    mended = draw_to_pinned(wrong, right, (0, 8), 48)
    torch.testing.assert_close(mended[1:8], right[1:8])


@pytest.mark.parametrize("pinned", [(), (0,), (0, 7), (3,), (2, 3, 19), range(20)])
@pytest.mark.parametrize("fade", [0, 1, 5, 40])
def test_no_frame_is_drawn_too_far_and_no_pinned_one_at_all(pinned, fade):
    drawn = [0.0] * 20
    for draw in draws(20, pinned, fade):
        assert draw.pin in pinned
        assert len(draw.frames) == len(draw.weights) <= fade
        assert draw.weights == sorted(draw.weights, reverse=True)
        assert all(abs(frame - draw.pin) == i + 1 for i, frame in enumerate(draw.frames))
        for frame, weight in zip(draw.frames, draw.weights, strict=True):
            drawn[frame] += weight
    assert all(drawn[frame] == 0 for frame in pinned)
    assert max(drawn) <= 1 + 1e-9
    assert any(drawn) == (fade > 0 and 0 < len(pinned) < 20)


def test_the_mask_tells_which_frames_are_pinned():
    samples = torch.zeros(6, 4, 3, 5)
    latent = pinned_latent(samples, (0, 4), 7)
    assert pinned_frames(latent) == [0, 4]
    # As host nodes cut masks, make them, and repeat them for all frames; a part of a frame is no pin.
    cut = {"samples": samples[3:], "noise_mask": latent["noise_mask"][3:]}
    assert pinned_frames(cut) == [1]
    assert pinned_frames({**latent, "noise_mask": latent["noise_mask"][:, 0]}) == [0, 4]
    assert pinned_frames({**latent, "noise_mask": torch.zeros(1, 3, 5)}) == []
    assert pinned_frames({"samples": samples}) == []
    latent["noise_mask"][4, :, 2, 1] = 1
    assert pinned_frames(latent) == [0]
    assert pinned_latent(samples, (), 7) == {"samples": samples}


def test_contrast_brings_pinned_frames_back():
    start, ends = torch.randn(5, 4, 2, 2), torch.randn(2, 4, 2, 2)
    latent = with_ends(start, ends, 48)
    given = before_contrast(latent, 1.25)["samples"]
    torch.testing.assert_close(1.25 * given[[0, 4]], ends)
    assert torch.equal(given[1:4], start[1:4])
    assert torch.equal(latent["samples"][[0, 4]], ends)
    # Frames that are pinned as the reference does are left alone.
    plain = {key: value for key, value in latent.items() if key != "pin_fade"}
    assert before_contrast(plain, 1.25) is plain
    assert before_contrast(latent, 0.0) is latent


@pytest.mark.parametrize("frames", [1, 2])
def test_between_two_ends_there_must_be_a_frame(frames):
    with pytest.raises(ExVideoError, match=f"at least 3 frames, got num_frames = {frames}"):
        with_ends(torch.zeros(frames, 4, 2, 2), torch.zeros(2, 4, 2, 2), 48)


@pytest.mark.parametrize("pinned", [(0, 1), (1, 2)])
def test_a_single_frame_beside_pinned_ones_has_no_step_beyond(pinned):
    right, shift = torch.randn(3, 4, 2, 2), 1 + torch.rand(1, 4, 2, 2)
    (free,) = {0, 1, 2} - {*pinned}
    mended = draw_to_pinned(right + shift, right, pinned, 16)
    off = ((mended - right)[free] / shift[0]).flatten()
    assert off.abs().max() < 0.02
