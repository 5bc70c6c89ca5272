"""Long clips in little memory: the same numbers in chunks, within what is free, and never lost for want of it."""

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from exvideo_pack.exvideo_core import host, plan
from exvideo_pack.exvideo_core.host.memory import OUT_OF_MEMORY
from exvideo_pack.exvideo_core.tiny import CHECKPOINT
from exvideo_pack.exvideo_core.types import ExVideoError

from benchmarks.counted import GOALS, SIZES, ours, peak

IDS, TIMESTEP = (29, 127, 0.02), 0.4
KIB = 1024


@pytest.fixture
def extended(loaded, extension):
    return host.apply_extension(loaded[0], extension)


@pytest.fixture
def within(monkeypatch):
    """Set how many bytes a pass on this machine may work in."""
    return lambda budget: monkeypatch.setattr(plan, "CPU_BUDGET", budget)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.fixture
def in_float64(models, extension, monkeypatch):
    """The extended model in double precision, where rounding cannot hide a difference."""
    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_management, "unet_dtype", lambda *args, **kwargs: torch.float64)
        patch.setattr(comfy.model_management, "unet_manual_cast", lambda *args, **kwargs: None)
        return host.apply_extension(host.load_svd(models / CHECKPOINT)[0], extension)


SHAPES = [(30, 16, 16), (7, 9, 13), (1, 8, 8), (2, 16, 24), (26, 8, 16)]


@pytest.mark.parametrize(("frames", "height", "width"), SHAPES)
def test_chunks_change_nothing(extended, in_float64, run_unet, within, frames, height, width):
    """Two videos in a batch, down to one frame and one position at a time."""
    # The host rounds a little of it to float32 even then.
    for model, dtype, bound in [(in_float64, torch.float64, 1e-7), (extended, torch.float32, 2e-6)]:
        x = [drawn(frames, 4, height, width, seed=seed).to(dtype) for seed in (0, 1)]
        image = drawn(1, 4, height, width, seed=2).expand(frames, -1, -1, -1).to(dtype)
        token = drawn(1, 1, 64, seed=3).to(dtype)
        inputs = x, [image, -image], [token, -token], IDS, TIMESTEP
        within(1 << 40)
        whole = run_unet(model, *inputs)
        assert whole.dtype == dtype
        for budget in (1, 100 * KIB, 3000 * KIB):
            within(budget)
            assert error(run_unet(model, *inputs), whole) < bound


def test_the_layers_in_chunks_are_the_hosts(in_float64, run_unet):
    """With a patch on attention that does nothing, the host's transformer blocks run as they are."""
    patched = in_float64.clone()
    calls = []

    def nothing(n, options):
        calls.append(options["block"])
        return n

    patched.set_model_attn1_output_patch(nothing)
    latents, images, token = drawn(30, 4, 16, 16), drawn(30, 4, 16, 16, seed=1), drawn(1, 1, 64, seed=2)
    inputs = [latents.double()], [images.double()], [token.double()], IDS, TIMESTEP
    plain = run_unet(patched, *inputs, options=patched.model_options["transformer_options"])
    assert len(calls) == 32
    assert error(run_unet(in_float64, *inputs), plain) < 1e-7


def test_predictions_are_made_one_by_one(extended, loaded, extension, condition, run):
    """Each under its own number, so that patches know the conditional one; the base keeps both in one batch."""
    seen = []

    def watch(executor, x, *args, **kwargs):
        (options,) = (a for a in (*args, *kwargs.values()) if isinstance(a, dict) and "cond_or_uncond" in a)
        seen.append((len(x), options["cond_or_uncond"]))
        return executor(x, *args, **kwargs)

    for model, expected in [(extended, [(6, [0]), (6, [1])]), (loaded[0], [(12, [1, 0])])]:
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watch)
        seen.clear()
        run("ExVideoSampler", model=clone, **condition(6), steps=1)
        assert sorted(seen) == sorted(expected)


def test_out_of_memory_is_tried_again_in_smaller_chunks(extended, predict, caplog, within):
    within(64 * plan.MIB)
    expected = predict(extended, 30)
    failures = [OUT_OF_MEMORY("CUDA out of memory"), OUT_OF_MEMORY("CUDA out of memory")]

    def fail(executor, *args, **kwargs):
        if failures:
            raise failures.pop()
        return executor(*args, **kwargs)

    short = extended.clone()
    short.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fail", fail)
    assert error(predict(short, 30), expected) < 2e-6
    told = [record.message for record in caplog.records if "ran out of memory" in record.message]
    assert [int(text.split(" MiB")[0].split()[-1]) for text in told] == [16, 4]


def test_out_of_memory_for_good_is_told(extended, predict, within):
    within(64 * plan.MIB)

    def fail(executor, *args, **kwargs):
        raise OUT_OF_MEMORY("CUDA out of memory")

    short = extended.clone()
    short.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fail", fail)
    with pytest.raises(OUT_OF_MEMORY):
        predict(short, 30)
    assert not any("forward" in vars(m) for m in short.model.diffusion_model.modules())


def test_the_host_asks_for_what_a_pass_takes(extended, loaded, predict, monkeypatch):
    """The base is reckoned by its number of images; the extended model by what it holds."""
    asked = {}
    load = comfy.model_management.load_models_gpu

    def listen(models, memory_required=0, **options):
        asked["bytes"] = memory_required, options["minimum_memory_required"]
        return load(models, memory_required=memory_required, **options)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", listen)
    predict(loaded[0], 100, side=32)
    base = asked["bytes"]
    predict(extended, 100, side=32)
    wanted, least = asked["bytes"]
    held = plan.held_bytes(100, 32, 32, 32, 4)
    assert held < least < base[1]
    assert least < held + 64 * plan.MIB + 1.1 * base[1] / 100
    assert wanted < 2 * least + 1


def test_settings_are_checked(loaded, extension, run):
    for setting in ("auto", "fast", "balanced", "low"):
        assert run("ExVideoApply", model=loaded[0], exvideo=extension, memory=setting)[0].get_additional_models()
    with pytest.raises(ExVideoError, match="no memory setting huge: choose auto, fast, balanced, low"):
        run("ExVideoApply", model=loaded[0], exvideo=extension, memory="huge")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["512×512", "1024×576"])
def test_the_real_size_stays_within_its_goal(size):
    """128 frames in half precision at SVD's own width, counted on fake tensors: held maps, and working memory."""
    height, width = SIZES[size]
    with torch.inference_mode(False):
        counted = peak(lambda: ours(512 * plan.MIB), 128, height, width)
    held = plan.held_bytes(128, height, width, 320, 2)
    print(f"\n{size}: {counted / 2**30:.2f} GiB, of which held by plan {held / 2**30:.2f}")
    assert counted / 2**30 <= GOALS[size]
    assert counted <= 1.1 * (held + 512 * plan.MIB)
