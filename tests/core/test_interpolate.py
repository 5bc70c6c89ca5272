"""Frames between frames, on pictures whose motion is known."""

import math

import pytest
import torch

from benchmarks.interpolated import blend, by, measured, plain_warping
from benchmarks.motion import CASES, pan, video, zoom
from exvideo_core import flow as flows
from exvideo_core.flow import default_flow, lucas_kanade_flow, opencv_flow
from exvideo_core.interpolate import FlowBetween, interpolate, interpolated_length, is_cut
from exvideo_core.types import ExVideoError

FLOWS = [pytest.param(opencv_flow, id="opencv"), pytest.param(lucas_kanade_flow, id="lucas-kanade")]
SIDE = 96


def texture(seed, x, y):
    """Sums of waves, smooth and without end: colours at places, [H, W, 3]."""
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(*x.shape, 3)
    for _ in range(24):
        angle, rate = 2 * math.pi * torch.rand(2, generator=generator)
        wave = 0.08 + 0.12 * rate
        phase = 2 * math.pi * torch.rand(3, generator=generator)
        sums += torch.sin(((x * angle.cos() + y * angle.sin()) * wave)[..., None] + phase)
    return (0.5 + sums / 20).clamp(0, 1)


def picture(seed=0, right=0.0, down=0.0, turn=0.0, side=SIDE):
    y, x = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    u, v = x - side / 2, y - side / 2
    return texture(
        seed, u * math.cos(turn) + v * math.sin(turn) - right, v * math.cos(turn) - u * math.sin(turn) - down
    )


def psnr(ours, right):
    return -10 * math.log10((ours - right).square().mean())


@pytest.mark.parametrize("flow", FLOWS)
def test_a_flow_says_how_far_pixels_move(flow):
    found = flow(picture().movedim(-1, 0), picture(right=3.0, down=-1.5).movedim(-1, 0))
    assert found.shape == (2, SIDE, SIDE)
    inner = found[:, 12:-12, 12:-12]
    assert inner[0].median() == pytest.approx(3.0, abs=0.1)
    assert inner[1].median() == pytest.approx(-1.5, abs=0.1)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("motion", [{"right": 4.0}, {"down": 2.5, "right": -3.0}, {"turn": 0.05}])
def test_what_lies_between_is_where_it_should_be(flow, motion):
    first, second = picture(), picture(**motion)
    times = [0.25, 0.5, 0.75]
    found = list(FlowBetween(flow=flow)(first, second, times))
    for time, frame in zip(times, found, strict=True):
        right = picture(**{name: amount * time for name, amount in motion.items()})
        inner = (slice(8, -8), slice(8, -8))  # what comes in at the edges, no frame shows
        assert psnr(frame[inner], right[inner]) > psnr(torch.lerp(first, second, time)[inner], right[inner]) + 10


@pytest.mark.parametrize("case", CASES)
def test_better_than_a_blend_and_than_plain_warping(case):
    """The figures that `benchmarks.interpolated` prints, for one frame."""
    methods = {"blend": blend, "plain": plain_warping, "opencv": by(opencv_flow), "own": by(lucas_kanade_flow)}
    figures = measured(case, methods)
    psnr = {name: figure[0] for name, figure in figures.items()}
    for ours in ("opencv", "own"):
        assert psnr[ours] > psnr["blend"] + 10
        assert psnr[ours] > psnr["plain"] + ("occlusion" in case)


@pytest.mark.parametrize("multiplier", [1, 2, 3, 16])
def test_frames_that_come_in_go_out_bit_for_bit(multiplier):
    clip = torch.stack([picture(right=2.0 * frame) for frame in range(3)])
    found = list(interpolate(clip, multiplier, FlowBetween()))
    assert len(found) == interpolated_length(3, multiplier) == 2 * multiplier + 1
    assert all(torch.equal(found[number * multiplier], frame) for number, frame in enumerate(clip))
    assert all(frame.shape == clip[0].shape and frame.dtype == clip.dtype for frame in found)
    assert torch.stack(found).isfinite().all()


def test_the_same_frames_give_the_same_bits():
    clip = video("occlusion, astronaut before brick", 2)
    first, again = (torch.stack(list(interpolate(clip, 3, FlowBetween()))) for _ in range(2))
    assert torch.equal(first, again)


def test_a_cut_is_held_and_motion_is_not():
    clip = [picture(0), picture(0, right=5), picture(3), picture(3, right=5)]
    found = list(interpolate(clip, 4, FlowBetween()))
    for number in range(5, 8):
        assert torch.equal(found[number], clip[1 if number < 6 else 2])
    assert not any(torch.equal(found[2], frame) for frame in clip)


@pytest.mark.parametrize("flow", FLOWS)
def test_cuts_are_told_from_fast_motion_and_from_light(flow):
    assert is_cut(picture(0), picture(3), flow)
    assert not is_cut(picture(0), picture(0, right=8), flow)
    assert not is_cut(0.9 * picture(0), 0.9 * picture(0) * 0.6 + 0.1, flow)


@pytest.mark.parametrize("flow", FLOWS)
def test_cuts_are_told_in_the_dark(flow):
    """Between natural pictures; and neither motion there, nor noise, is taken for one."""
    generator = torch.Generator().manual_seed(0)
    one, other, moved = (0.2 * case(time) for case, time in ((pan, 0.0), (zoom, 0.0), (pan, 4.0)))
    noisy, again = (moved + 0.05 * torch.randn(moved.shape, generator=generator) for _ in range(2))
    assert is_cut(one, other, flow)
    assert not is_cut(one, moved, flow)
    assert not is_cut(noisy.clamp(0, 1), again.clamp(0, 1), flow)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("step", [1, 8])
def test_fast_motion_is_no_cut(case, step, flow):
    assert not is_cut(CASES[case](0.0), CASES[case](float(step)), flow)


def test_one_frame_and_none():
    assert len(list(interpolate([picture()], 4, FlowBetween()))) == interpolated_length(1, 4) == 1
    assert list(interpolate([], 4, FlowBetween())) == []
    assert interpolated_length(0, 4) == 0


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("size", [(1, 1), (2, 40), (15, 15), (16, 16), (33, 17)])
def test_any_size(flow, size):
    first, second = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(0))
    (found,) = FlowBetween(flow=flow)(first, second, [0.5])
    assert found.shape == (*size, 3)
    assert found.isfinite().all()


def test_values_that_are_no_colours_do_no_harm():
    first, second = picture(), picture(right=2)
    first[10:20, 10:20] = float("nan")
    second[40:50] = 7.0
    (found,) = FlowBetween()(first, second, [0.5])
    assert found.nan_to_num().max() <= 1
    assert found[60:].isfinite().all()


@pytest.mark.parametrize("flow", FLOWS)
def test_long_work_can_be_ended(flow):
    """At each look, of which there are several between two frames."""
    first, second = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    looks = []

    def look():
        looks.append(1)

    assert len(list(interpolate([first, second], 2, FlowBetween(flow=flow, check=look), flow, check=look))) == 3
    cut = len(looks)
    list(FlowBetween(flow=flow, check=look)(first, second, [0.5]))
    assert cut >= 2
    assert len(looks) - cut >= 6

    def end():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        list(FlowBetween(flow=flow, check=end)(first, second, [0.5]))
    with pytest.raises(InterruptedError):
        list(interpolate([first, second], 2, FlowBetween(), flow, check=end))


@pytest.mark.parametrize("multiplier", [0, 17, -1])
def test_multipliers_out_of_range_are_refused(multiplier):
    with pytest.raises(ExVideoError, match="1 to 16"):
        list(interpolate([picture()], multiplier, FlowBetween()))


def test_without_opencv_the_other_flow_is_taken(monkeypatch):
    assert default_flow() is opencv_flow
    monkeypatch.setattr(flows, "_opencv", lambda: None)
    assert default_flow() is lucas_kanade_flow


def test_a_loop_has_something_between_its_ends():
    frames = [picture(right=2.0 * i) for i in range(3)]
    between = FlowBetween(flow=lucas_kanade_flow)
    line = list(interpolate(frames, 2, between, lucas_kanade_flow))
    loop = list(interpolate(frames, 2, between, lucas_kanade_flow, loop=True))
    assert len(line) == interpolated_length(3, 2) == 5
    assert len(loop) == interpolated_length(3, 2, loop=True) == 6
    assert all(torch.equal(one, other) for one, other in zip(line, loop, strict=False))
    # From the last frame back to the first it is four pixels to the left: half way there it is the second.
    inner = (slice(12, -12), slice(12, -12))
    assert psnr(loop[5][inner], frames[1][inner]) > 30
    assert [len(list(interpolate(frames[:1], n, between, loop=True))) for n in (1, 3)] == [1, 3]


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("size", [(64, 160), (160, 64)])
def test_a_flow_is_found_all_over_frames_that_are_not_square(flow, size):
    y, x = torch.meshgrid(*(torch.arange(side).float() for side in size), indexing="ij")
    found = flow(texture(0, x, y).movedim(-1, 0), texture(0, x - 3.0, y + 1.5).movedim(-1, 0))
    for corner in (found[:, 12:40, 12:40], found[:, -40:-12, -40:-12]):
        assert corner[0].median() == pytest.approx(3.0, abs=0.1)
        assert corner[1].median() == pytest.approx(-1.5, abs=0.1)
