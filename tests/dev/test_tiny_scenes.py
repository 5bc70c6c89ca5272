"""The scenes that the tiny model learns from: the first frame tells the rest."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from dev.tiny.scenes import CIRCLE, KINDS, MARGIN, PACE, RING, SPEED, Scene, backdrop, render, scene

SEEDS = range(60)


def seen_at(frame: torch.Tensor, background: torch.Tensor) -> tuple[float, float]:
    """Middle of what differs from the background, as (x, y)."""
    there = ((frame - background).abs().sum(-1) > 0.02).float()
    side = frame.shape[0]
    along = (torch.arange(side) + 0.5) / side
    return float((there.sum(0) * along).sum() / there.sum()), float((there.sum(1) * along).sum() / there.sum())


def test_a_seed_is_a_scene_and_all_kinds_come():
    assert scene(3) == scene(3)
    assert len({scene(seed) for seed in SEEDS}) == len(SEEDS)
    assert {scene(seed).kind for seed in SEEDS} == set(KINDS)


@pytest.mark.parametrize("pace", [None, PACE])
@pytest.mark.parametrize("seed", SEEDS)
def test_shapes_stay_in_the_picture_and_move_at_their_speed(seed, pace):
    what = scene(seed, pace=pace)
    places = [what.at(frame / 30) for frame in range(128)]
    for x, y, _ in places:
        assert what.radius - 1e-9 <= x <= 1 - what.radius + 1e-9
        assert what.radius - 1e-9 <= y <= 1 - what.radius + 1e-9
    steps = [math.dist(a[:2], b[:2]) for a, b in pairwise(places)]
    assert max(steps) <= what.speed / 30 + 1e-9
    assert max(steps) == pytest.approx(what.speed / 30, rel=0.01)


def test_all_are_equally_fast_and_discs_keep_to_their_row_or_column():
    ways = set()
    for what in (scene(seed, kinds) for seed in SEEDS for kinds in (KINDS, (RING,))):
        assert what.speed == SPEED
        if what.kind in ("disc", RING):
            along = [what.at(seconds)[:2] for seconds in (0, 1, 2.5)]
            assert min(max(axis) - min(axis) for axis in zip(*along, strict=True)) < 1e-9
            ways.add(round(what.heading / (math.pi / 2)) % 4)
    assert ways == {0, 1, 2, 3}


def test_with_a_pace_small_shapes_are_faster_and_discs_go_in_any_direction():
    for seed in SEEDS:
        what, plain = scene(seed, pace=PACE), scene(seed)
        assert what.speed * what.radius == pytest.approx(PACE)
        assert what.kind != "disc" or abs(math.sin(2 * what.heading)) > 1e-6
        assert replace(what, speed=SPEED, heading=plain.heading) == plain


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_rendered_is_where_it_is_said_to_be(kind):
    seed = next(seed for seed in SEEDS if scene(seed).kind == kind)
    what, side = scene(seed), 96
    background = backdrop(what, side)
    video = render(what, 40, side)
    assert video.shape == (40, side, side, 3)
    assert 0 <= float(video.min()) <= float(video.max()) <= 1
    for number in (0, 13, 39):
        x, y, _ = what.at(number / 30)
        assert seen_at(video[number], background) == pytest.approx((x, y), abs=0.015)


def test_a_disc_bounces_as_light_does():
    what = Scene("disc", 0.1, (0.5, 0.5), 0.0, (1, 0, 0), (0, 0, 0), (0, 0, 0))
    edge = 1 - 0.1 - MARGIN
    back = (2 * (edge - 0.5)) / what.speed
    x, y, heading = what.at(back)
    assert (x, y) == pytest.approx((0.5, 0.5), abs=1e-6)
    assert abs(heading) == pytest.approx(math.pi)


def test_parts_of_a_video_are_those_of_the_whole():
    what = scene(5)
    assert torch.equal(render(what, 20, 32, first=12), render(what, 20, 32)[12:])
    torch.testing.assert_close(render(what, 10, 32, fps=15), render(what, 20, 32, fps=30)[::2])


def test_a_triangle_comes_back_after_a_circle_to_its_right():
    what = Scene("triangle", 0.1, (0.5, 0.5), 0.0, (1, 0, 0), (0, 0, 0), (0, 0, 0))
    round_once = 2 * math.pi * CIRCLE / what.speed
    assert what.at(round_once)[:2] == pytest.approx((0.5, 0.5))
    # Heading right, its right is downwards.
    assert what.at(round_once / 2)[:2] == pytest.approx((0.5, 0.5 + 2 * CIRCLE))


@pytest.mark.parametrize("kind", KINDS)
def test_any_frame_tells_the_rest(kind):
    """Going on from where a scene is after some time is the same as having gone on all the time."""
    what = next(scene(seed) for seed in SEEDS if scene(seed).kind == kind)
    x, y, heading = what.at(1.0)
    later = replace(what, place=(x, y), heading=heading)
    for seconds in (0.5, 3.0):
        ours, expected = later.at(seconds), what.at(1.0 + seconds)
        assert ours[:2] == pytest.approx(expected[:2])
        assert math.cos(ours[2] - expected[2]) == pytest.approx(1)
