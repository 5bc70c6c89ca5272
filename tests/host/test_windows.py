"""The host's context windows on the extended model, with the host's own node and its defaults."""

import inspect

import pytest
import torch
from comfy.conds import CONDNoiseShape
from comfy.context_windows import IndexListContextWindow
from comfy.patcher_extension import WrappersMP
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.extension import TABLE, Extension
from exvideo_pack.exvideo_core.host.windows import window_conditions
from exvideo_pack.exvideo_core.layers import FRAME_NUMBERS, PositionLayers
from exvideo_pack.exvideo_core.types import ExVideoError

LENGTH, OVERLAP = 16, 4


def shorter(extension, frames):
    return Extension({k: t[:frames] if k.endswith(TABLE) else t for k, t in extension.tensors.items()}, frames)


@pytest.fixture
def watched():
    """A clone of a MODEL that notes, for every pass of the UNet, what it was given."""

    def call(model):
        passes = []

        def watch(executor, x, *args, **kwargs):
            (options,) = (a for a in (*args, *kwargs.values()) if isinstance(a, dict) and "cond_or_uncond" in a)
            passes.append(
                {
                    "x": x.clone(),
                    "rows": options.get(FRAME_NUMBERS),
                    "frames": kwargs["num_video_frames"],
                    "videos": len(options["cond_or_uncond"]),
                }
            )
            return executor(x, *args, **kwargs)

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watch)
        return clone, passes

    return call


@pytest.fixture
def conditions(condition):
    return {**condition(40), "steps": 2}


@pytest.mark.parametrize("reach", [128, 20])
def test_every_window_sees_its_own_conditions(loaded, extension, run, conditions, watched, windowed, reach):
    """An image latent that differs from frame to frame, so that any window of other frames would show."""
    image = torch.arange(40.0).view(40, 1, 1, 1).expand(40, 4, 8, 8).clone()
    ((token, ids),) = conditions["positive"]
    ((no_token, no_ids),) = conditions["negative"]
    conditions["positive"] = [[token, {**ids, "concat_latent_image": image}]]
    conditions["negative"] = [[no_token, {**no_ids, "concat_latent_image": -image}]]
    model, passes = watched(windowed(host.apply_extension(loaded[0], shorter(extension, reach))))
    (out,) = run("ExVideoSampler", model=model, **conditions)
    assert out["samples"].shape == (40, 4, 8, 8)
    assert out["samples"].isfinite().all()
    seen = set()
    for one in passes:
        assert len(one["x"]) == one["videos"] * one["frames"]
        assert len(one["rows"]) == one["frames"]
        numbers = one["x"][:, 4, 0, 0].unflatten(0, (one["videos"], -1)).abs().int()
        assert (numbers == numbers[0]).all()
        window = numbers[0].tolist()
        assert window == list(range(window[0], window[0] + one["frames"]))
        seen |= set(window)
        # One frame more than the window has is the one that newer hosts lead in with.
        lead = one["frames"] - LENGTH
        assert lead in (0, 1)
        local = [max(i - lead, 0) for i in range(one["frames"])]
        assert one["rows"] == (window if reach == 128 else local)
    assert seen == set(range(40))


def test_windows_as_long_as_the_clip_change_nothing(loaded, extension, run, conditions, windowed):
    model = host.apply_extension(loaded[0], extension)
    (whole,) = run("ExVideoSampler", model=model, **conditions)
    (same,) = run("ExVideoSampler", model=windowed(model, context_length=40), **conditions)
    assert torch.equal(same["samples"], whole["samples"])
    (parts,) = run("ExVideoSampler", model=windowed(model), **conditions)
    assert not torch.allclose(parts["samples"], whole["samples"])


@pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform", "looped_uniform", "batched"])
@pytest.mark.parametrize("reach", [128, 20])
def test_every_schedule_runs(loaded, extension, run, conditions, windowed, schedule, reach):
    options = {"context_schedule": schedule, "context_length": 16, "closed_loop": schedule == "looped_uniform"}
    model = windowed(host.apply_extension(loaded[0], shorter(extension, reach)), **options)
    (out,) = run("ExVideoSampler", model=model, **{**conditions, "min_cfg": 1.0})
    assert out["samples"].isfinite().all()


def test_a_window_beyond_the_extension_is_told(loaded, extension, run, conditions, windowed):
    model = windowed(host.apply_extension(loaded[0], shorter(extension, 10)))
    with pytest.raises(ExVideoError, match="reaches 10 frames, but a context window has 16: shorten"):
        run("ExVideoSampler", model=model, **conditions)


@pytest.mark.parametrize("anchor", [None, -1, 0, 3])
def test_the_frame_before_a_window_is_counted(loaded, extension, anchor):
    """Later hosts put one frame before a window, which may be the clip's first."""
    counted = "total_frames" in inspect.signature(IndexListContextWindow).parameters
    window = IndexListContextWindow(list(range(4, 10)), **({"total_frames": 40} if counted else {}))
    window.causal_anchor_index = anchor
    expected = [*([anchor] if anchor in (0, 3) else []), *range(4, 10)]
    images = torch.arange(40.0).view(40, 1, 1, 1).expand(40, 4, 8, 8)
    conds = [[{"model_conds": {"c_concat": CONDNoiseShape(images)}}], None]
    x = torch.zeros(len(expected), 4, 8, 8)
    seen = []

    def predict(model, conds, x, timestep, options):
        seen.append((conds, timestep, options["transformer_options"][FRAME_NUMBERS]))
        return [x, x]

    positions = PositionLayers(extension.position_weights())
    options = {"transformer_options": {"context_window": window}}
    window_conditions(positions, predict, loaded[0], conds, x, torch.ones(1), options)
    conds, timestep, rows = seen[0]
    assert rows == expected
    assert conds[0][0]["model_conds"]["c_concat"].cond[:, 0, 0, 0].tolist() == expected
    assert len(timestep) == len(x)


def test_windows_need_an_extension(run, loaded):
    model, clip_vision, vae = loaded
    given = {
        "model": model, "clip_vision": clip_vision, "vae": vae, "init_image": torch.rand(1, 64, 64, 3),
        "width": 64, "height": 64, "segment_frames": 6, "overlap": 2, "steps": 3, "mode": "windows",
    }  # fmt: skip
    with pytest.raises(ExVideoError, match="Windows need a model with an ExVideo extension"):
        run("ExVideoLongSampler", **given, total_frames=14)
    (samples, _) = run("ExVideoLongSampler", **given, total_frames=6)
    assert samples["samples"].isfinite().all()


@pytest.fixture
def long_windows(loaded, extension, run):
    """A MODEL, and what else the Long Sampler is given: 14 frames in windows of 6, which is all that it reaches."""
    extended, clip_vision, vae = host.apply_extension(loaded[0], shorter(extension, 6)), *loaded[1:]
    given = {
        "clip_vision": clip_vision, "vae": vae, "init_image": torch.rand(1, 64, 64, 3), "width": 64, "height": 64,
        "segment_frames": 6, "overlap": 2, "steps": 3, "mode": "windows", "total_frames": 14,
    }  # fmt: skip
    return extended, lambda model: run("ExVideoLongSampler", model=model, **given)[0]["samples"]


def test_a_patch_that_makes_a_prediction_of_its_own_makes_it_in_windows(long_windows, watched):
    """As perturbed attention does, beyond what the extension reaches."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    model, make = long_windows
    model, passes = watched(model)
    plain = make(model)
    (perturbed,) = PerturbedAttentionGuidance.execute(model, 3.0).args
    passes.clear()
    assert not torch.allclose(make(perturbed), plain)
    assert passes
    assert {one["frames"] for one in passes} == {6}


def test_context_windows_and_windows_mode_exclude_each_other(long_windows, windowed):
    model, make = long_windows
    with pytest.raises(ExVideoError, match="windows mode has its own: take theirs away, or set mode to chain"):
        make(windowed(model, context_length=4))
