"""Quality of a scene's video: the right one is perfect, and what is wrong with others shows in the right number."""

import pytest
import torch

from dev.tiny.quality import LOST, astray, by_parts, flicker, frechet, quality
from dev.tiny.scenes import backdrop, render, scene

FRAMES, SIDE = 12, 64


@pytest.fixture(params=range(3))
def what(request):
    return scene(request.param)


def test_the_right_video_is_perfect(what):
    psnr, alike, place = quality(render(what, FRAMES, SIDE), what)
    assert psnr.shape == alike.shape == place.shape == (FRAMES,)
    assert (psnr == 60).all()
    torch.testing.assert_close(alike, torch.ones(FRAMES))
    torch.testing.assert_close(place, torch.zeros(FRAMES))
    assert flicker(render(what, FRAMES, SIDE), what) == pytest.approx(1)


def test_a_shape_that_stands_still_is_as_far_off_as_the_right_one_has_gone(what):
    still = render(what, 1, SIDE).expand(FRAMES, -1, -1, -1)
    psnr, alike, place = quality(still, what)
    gone = torch.tensor([what.at(frame / 30)[:2] for frame in range(FRAMES)])
    torch.testing.assert_close(place, (gone - gone[0]).norm(dim=-1), atol=0.02, rtol=0.1)
    assert psnr[0] == 60
    assert psnr[-1] < 30
    assert alike[-1] < alike[0]
    assert flicker(still, what) == 0


def test_a_shape_with_a_wrong_pace_is_as_far_astray_in_short_videos_as_in_long_ones():
    """On the way straight ahead, as a disc goes."""
    what = scene(0, kinds=("disc",))
    for frames in (10, 50):
        way = what.speed * torch.arange(frames) / 30
        assert astray(0.2 * way, what) == pytest.approx(0.2)
    still = render(what, 1, SIDE).expand(FRAMES, -1, -1, -1)
    assert astray(quality(still, what).place, what) == pytest.approx(1, abs=0.1)


def test_a_shape_that_is_gone_counts_as_lost(what):
    empty = backdrop(what, SIDE).expand(FRAMES, -1, -1, -1)
    assert (quality(empty, what).place == LOST).all()


def test_a_wrong_brightness_is_no_wrong_place(what):
    video = (render(what, FRAMES, SIDE) * 0.97).clamp(0, 1)
    psnr, _, place = quality(video, what)
    assert place.max() < 0.02
    assert psnr.max() < 45


def test_frechet_distance_of_known_normal_distributions():
    draw = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0))
    other = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(1))
    assert frechet(draw, other) == pytest.approx(0, abs=1e-3)
    # Means 2 apart in each of 3 directions, deviations 1 and 3: 3 · 4 + 3 · (1 − 3)².
    assert frechet(draw, 3 * other + 2) == pytest.approx(3 * 4 + 3 * 4, rel=0.02)


def test_parts_of_a_video_have_means_of_their_own():
    assert by_parts(torch.arange(10.0), {"begin": (0, 5), "end": (5, 10)}) == {"begin": 2, "end": 7}
