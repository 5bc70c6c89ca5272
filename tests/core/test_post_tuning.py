"""Post-tuning's parts that need no ComfyUI: chance, loss, motion, lengths, the picture."""

import math
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from dev import reference
from exvideo_core.extension import longer_extension, new_extension, position_ids
from exvideo_core.post_tuning import many
from exvideo_core.post_tuning.curve import INK, loss_curve
from exvideo_core.post_tuning.engine import Engine
from exvideo_core.post_tuning.motion import THRESHOLDS, motion_bucket, motion_score
from exvideo_core.post_tuning.objective import draw, loss, noise_like
from exvideo_core.post_tuning.recipe import Recipe
from exvideo_core.schedule import sigmas
from exvideo_core.tiny import LAYOUT, draw_checkpoint
from exvideo_core.types import ExVideoError

# --- chance and loss -------------------------------------------------------------------------------------------


def test_every_clip_comes_once_before_any_comes_again():
    order = [draw(3, step, 7).clip for step in range(70)]
    epochs = [order[i : i + 7] for i in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_chance_depends_on_seed_and_step_alone():
    assert draw(1, 5, 9) == draw(1, 5, 9)
    assert len({tuple(draw(seed, step, 9).clip for step in range(9)) for seed in (0, 1, 2)}) == 3
    draws = [draw(seed, step, 9) for seed in (0, 1, 2) for step in range(50)]
    assert len({chance.seed for chance in draws}) == 150
    state = torch.get_rng_state()
    draw(1, 5, 9)
    noise_like(torch.zeros(3), 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_levels_are_those_of_the_schedule_all_equally_often():
    levels = sigmas(1000)[:-1].tolist()
    drawn = [levels.index(draw(0, step, 5).sigma) for step in range(3000)]
    thirds = Counter(3 * level // 1000 for level in drawn)
    assert all(900 < thirds[third] < 1100 for third in range(3))


def test_low_noise_levels_can_be_left_out():
    """Then the schedule's others come equally often; a fifth of them lie between these two."""
    highest, lowest = 700 ** (1 / 7), 0.002 ** (1 / 7)
    above, between = ((highest - share * (highest - lowest)) ** 7 for share in (0.5, 0.4))
    drawn = [draw(1, step, 10, sigma_min=above).sigma for step in range(2000)]
    assert min(drawn) >= above
    assert max(drawn) > 650
    assert sum(sigma < between for sigma in drawn) / 2000 == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize("level", [0, 400, 999])
def test_the_loss_is_the_authors(level):
    scheduler = reference.scheduler()
    scheduler.set_timesteps(1000)
    denoised, latents = (torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    weight = scheduler.training_weight(scheduler.timesteps[level])
    theirs = torch.nn.functional.mse_loss(denoised, 1.01 * latents) * weight
    torch.testing.assert_close(loss(denoised, latents, float(scheduler.sigmas[level])), theirs, rtol=1e-5, atol=0)


# --- motion ----------------------------------------------------------------------------------------------------


def test_motion_is_the_deviation_over_time_in_pixels_from_minus_one_to_one():
    frames = torch.rand(9, 6, 8, 3, generator=torch.Generator().manual_seed(0))
    assert motion_score(frames) == pytest.approx(float((2 * frames - 1).std(0).mean()), rel=1e-5)
    assert motion_score(frames[:1]) == 0
    assert motion_score(frames[:1].expand(5, -1, -1, -1)) == 0


def test_motion_buckets_are_between_the_paper_s_thresholds():
    assert len(THRESHOLDS) == 128
    assert list(THRESHOLDS) == sorted(THRESHOLDS)
    assert (THRESHOLDS[1], THRESHOLDS[64], THRESHOLDS[127]) == (0.012205946, 0.133417681, 0.440871328)
    for bucket, (low, high) in enumerate(zip(THRESHOLDS, [*THRESHOLDS[1:], 2.0], strict=True)):
        assert motion_bucket(low) == bucket
        assert motion_bucket((low + high) / 2) == bucket
        assert motion_bucket(math.nextafter(high, 0)) == bucket


# --- lengths ---------------------------------------------------------------------------------------------------


def test_an_extension_grows_by_the_bounce_rule():
    weights = draw_checkpoint(LAYOUT, part="model.diffusion_model.")
    new = new_extension(lambda key: weights["model.diffusion_model." + key], 25)
    longer = longer_extension(new, 128)
    fresh = new_extension(lambda key: weights["model.diffusion_model." + key], 128)
    assert longer.num_frames == 128
    assert all(torch.equal(longer.tensors[key], tensor) for key, tensor in fresh.tensors.items())

    again = longer_extension(fresh, 256)
    for key, tensor in again.tensors.items():
        assert torch.equal(tensor[:128] if key.endswith("embeddings") else tensor, fresh.tensors[key])
    rows = again.tensors["blocks.7.positional_embedding.embeddings"]
    bounced = [126 - k if k < 20 else 88 + k for k in ((frame - 128) % 40 for frame in range(128, 256))]
    assert torch.equal(rows[128:], rows[bounced])
    assert longer_extension(fresh, 64) is fresh
    assert position_ids(30)[23:] == [23, 24, 23, 22, 21, 20, 19]


@pytest.mark.parametrize(("known", "wanted"), [(1, 9), (2, 9), (5, 30)])
def test_short_extensions_grow_too(known, wanted):
    weights = draw_checkpoint(LAYOUT, part="model.diffusion_model.")
    new = new_extension(lambda key: weights["model.diffusion_model." + key], known)
    table = longer_extension(new, wanted).tensors["blocks.7.positional_embedding.embeddings"]
    rows = [next(i for i in range(known) if torch.equal(row, table[i])) for row in table]
    assert rows[:known] == list(range(known))
    assert all(abs(a - b) == (known > 1) for a, b in pairwise(rows))


# --- the picture -----------------------------------------------------------------------------------------------


def test_the_curve_shows_losses_that_fall():
    losses = [10 ** (-2 * step / 300) for step in range(300)]
    picture = loss_curve(losses)
    ink = torch.tensor([[picture.getpixel((x, y)) == INK for x in range(640)] for y in range(360)])
    heights = [float(ink[:, x].nonzero().float().mean()) for x in (100, 300, 600)]
    assert heights[0] < heights[1] < heights[2]
    for few in ([], [0.5], [math.nan], [0.0, 1.0]):
        assert loss_curve(few).size == (640, 360)


def test_the_curve_s_line_is_the_mean_of_losses_that_jump():
    picture = loss_curve([1.0, 0.01] * 150)
    ink = [y for x in range(300, 600) for y in range(360) if picture.getpixel((x, y)) == INK]
    assert max(ink) - min(ink) < 40 < 120 < min(ink) < max(ink) < 240


@pytest.mark.parametrize("in_half", [False, True])
def test_a_gradient_that_is_not_finite_changes_nothing(in_half):
    """Also in half precision, on devices that do not scale gradients and on those that do."""
    engine, weight = Engine(), torch.nn.Parameter(torch.ones(3))
    engine.in_half = in_half
    engine.prepare(None, {"weight": weight}, Recipe(steps=1, learning_rate=0.1))
    engine.backward((weight * torch.tensor([1.0, torch.inf, 1.0])).sum())
    assert not math.isfinite(engine.step())
    assert (weight == 1).all()
    engine.backward(weight.sum())
    assert math.isfinite(engine.step())
    assert (weight != 1).all()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_gradient_is_scaled_down_to_the_length_that_a_recipe_allows(scaled):
    """The loss's own, whether or not it was scaled up on the way; of the first one AdamW's moment is a tenth."""
    gradient = torch.tensor([3.0, 0.0, -4.0])
    for most, length in ((0.5, 0.5), (20.0, 5.0)):
        engine, weight = Engine(), torch.nn.Parameter(torch.ones(3))
        engine.prepare(None, {"weight": weight}, Recipe(steps=1, clip_norm=most))
        engine.scaler = GradScaler("cpu", enabled=scaled)
        engine.backward((weight * gradient).sum())
        assert engine.step() == pytest.approx(5)
        torch.testing.assert_close(engine.moments(weight)["exp_avg"], gradient / 5 * length / 10)


def test_weights_without_a_gradient_decay_as_a_recipe_says():
    engine, weight = Engine(), torch.nn.Parameter(torch.ones(3))
    engine.prepare(None, {"weight": weight}, Recipe(steps=1, learning_rate=0.1, weight_decay=0.5))
    assert engine.step() == 0
    torch.testing.assert_close(weight.detach(), torch.full((3,), 1 - 0.1 * 0.5))


def test_processes_that_accelerate_leaves_alone_are_told(monkeypatch):
    """Each would learn the same, and write the same files."""
    alone = SimpleNamespace(process_index=0, num_processes=1)
    accelerate = SimpleNamespace(Accelerator=lambda **told: alone, DistributedDataParallelKwargs=dict)
    monkeypatch.setattr(many, "imported", lambda library: accelerate)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert many.Accelerated().processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ExVideoError, match="2 processes were started, and accelerate has 1 here"):
        many.Accelerated()
