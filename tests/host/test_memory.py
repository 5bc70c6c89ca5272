"""Long clips in little memory: the same numbers in chunks, within what is free, and never lost for want of it."""

from functools import lru_cache

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from exvideo_pack.exvideo_core import budget, host
from exvideo_pack.exvideo_core.extension import new_extension
from exvideo_pack.exvideo_core.host import interpolation, memory
from exvideo_pack.exvideo_core.host.memory import OUT_OF_MEMORY
from exvideo_pack.exvideo_core.tiny import CHECKPOINT
from exvideo_pack.exvideo_core.types import ExVideoError

from benchmarks.counted import GIB, GOALS, MIB, SIZES, unet_peak
from benchmarks.fake import our_unet
from dev.noise import drawn

IDS, TIMESTEP = (29, 127, 0.02), 0.4
KIB = 1024


@pytest.fixture
def extended(loaded, extension):
    return host.apply_extension(loaded[0], extension)


@pytest.fixture
def within(monkeypatch):
    """Set how many bytes a pass on this machine may work in."""
    return lambda size: monkeypatch.setattr(budget, "CPU_BUDGET", size)


def error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.fixture
def in_float64(models, extension, monkeypatch):
    """The extended model in double precision, where rounding cannot hide a difference."""
    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_management, "unet_dtype", lambda *args, **kwargs: torch.float64)
        patch.setattr(comfy.model_management, "unet_manual_cast", lambda *args, **kwargs: None)
        return host.apply_extension(host.load_svd(models / CHECKPOINT)[0], extension)


SHAPES = [(30, 8, 8), (7, 9, 13), (1, 8, 8), (2, 16, 24), (26, 8, 4)]


@pytest.mark.parametrize(("frames", "height", "width"), SHAPES)
def test_chunks_change_nothing(extended, in_float64, run_unet, within, frames, height, width):
    """Two videos in a batch, down to one frame and one position at a time, less than any plan."""
    # The host rounds a little of it to float32 even then.
    for model, dtype in [(in_float64, torch.float64), (extended, torch.float32)]:
        x = [drawn(frames, 4, height, width, seed=seed).to(dtype) for seed in (0, 1)]
        image = drawn(1, 4, height, width, seed=2).expand(frames, -1, -1, -1).to(dtype)
        token = drawn(1, 1, 64, seed=3).to(dtype)
        inputs = x, [image, -image], [token, -token], IDS, TIMESTEP
        within(1 << 40)
        whole = run_unet(model, *inputs)
        assert whole.dtype == dtype
        for size, bound in [(1, 2e-6), (100 * KIB, 2e-6), (3000 * KIB, 1e-6)]:
            within(size)
            assert error(run_unet(model, *inputs), whole) < (bound if dtype == torch.float32 else 1e-7)


def test_the_layers_in_chunks_are_the_hosts(in_float64, run_unet):
    """With a patch on attention that does nothing, the host's transformer blocks run as they are."""
    patched = in_float64.clone()
    calls = []

    def nothing(n, options):
        calls.append(options["block"])
        return n

    patched.set_model_attn1_output_patch(nothing)
    latents, images, token = drawn(30, 4, 8, 16), drawn(30, 4, 8, 16, seed=1), drawn(1, 1, 64, seed=2)
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
    """Also where a device says so by an error of another class, as of memory that cannot be page-locked."""
    within(64 * MIB)
    expected = predict(extended, 30)
    failures = [OUT_OF_MEMORY("CUDA out of memory"), torch.AcceleratorError("CUDA error: out of memory")]

    def fail(executor, *args, **kwargs):
        if failures:
            raise failures.pop()
        return executor(*args, **kwargs)

    short = extended.clone()
    short.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fail", fail)
    assert error(predict(short, 30), expected) < 2e-6
    told = [record.message for record in caplog.records if "ran out of memory" in record.message]
    assert [int(text.split(" MiB")[0].split()[-1]) for text in told] == [16, 4]
    assert all("a smaller setting of memory" in text for text in told)


def test_out_of_memory_for_good_is_told(extended, predict, within):
    within(64 * MIB)

    def fail(executor, *args, **kwargs):
        raise OUT_OF_MEMORY("CUDA out of memory")

    short = extended.clone()
    short.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fail", fail)
    with pytest.raises(OUT_OF_MEMORY):
        predict(short, 30)
    assert not any("forward" in vars(m) for m in short.model.diffusion_model.modules())
    # What took the memory may be gone: the next pass is not made in the smallest chunks for it.
    (doing,) = (w.__self__ for w in _wrapped(extended) if isinstance(getattr(w, "__self__", None), memory.Memory))
    assert doing(torch.empty(30, 8, 16, 16)).budget == 64 * MIB


def _wrapped(model):
    """The functions around the UNet, out of what keeps a compiler from them."""
    for wrapper in model.get_wrappers(WrappersMP.DIFFUSION_MODEL, "exvideo"):
        yield getattr(wrapper, "_torchdynamo_orig_callable", wrapper)


def test_a_pass_of_the_hosts_own_is_not_tried_again(loaded, predict):
    tries = []

    def fail(executor, *args, **kwargs):
        tries.append(1)
        raise OUT_OF_MEMORY("CUDA out of memory")

    new = host.apply_extension(loaded[0], new_extension(host.base_weights(loaded[0]), 128))
    new.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fail", fail)
    with pytest.raises(OUT_OF_MEMORY):
        predict(new, 6)
    assert len(tries) == 1


def test_smaller_passes_go_on_as_before_when_memory_ran_out():
    doing = memory.Memory("fast", 32)
    before = doing(torch.empty(4, 8, 8, 8)).budget

    def fail_once(x):
        if doing(x).budget == before:
            raise OUT_OF_MEMORY("CUDA out of memory")

    doing.retrying(fail_once, torch.empty(8, 8, 8, 8))
    assert doing(torch.empty(8, 8, 8, 8)).budget == doing(torch.empty(9, 8, 8, 8)).budget == before // 4
    assert doing(torch.empty(4, 8, 8, 8)).budget == before


def test_what_is_free_beside_all_weights_is_planned_with(extended, like_a_gpu, monkeypatch):
    """Those of the new parts, too: what a pass takes falls where its skip connections have to wait elsewhere."""
    (positions,) = extended.get_additional_models()
    weights = extended.model_size() + positions.model_size()
    needed = budget.plan_pass("auto", 32 * 1000 * 64 * 64 * 4, 1 << 40).needed
    like_a_gpu(64 * GIB)
    *_, prepare = extended.get_wrappers(WrappersMP.PREPARE_SAMPLING, "exvideo")
    told = []
    for free in (needed - KIB, needed + KIB):
        monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda _device, free=free: weights + free)
        prepare(lambda _model, shape, _: told.append(shape[0]), extended, [1000, 4, 64, 64])
    assert told[0] < told[1]


def test_the_hosts_own_windows_are_reckoned_with(extended, windowed):
    """And the host is never told of more images than there are."""
    told = []
    for model, shape in (
        (windowed(extended, context_length=16, context_overlap=4), [1000, 4, 64, 64]),
        (extended, [1000, 4, 64, 64]),
        (extended, [3, 4, 8, 8]),
    ):
        *_, prepare = model.get_wrappers(WrappersMP.PREPARE_SAMPLING, "exvideo")
        prepare(lambda _model, shape, _: told.append(shape[0]), model, shape)
    assert told[0] < told[1]
    assert told[2] == 3


def test_single_images_are_marked_for_ours_as_for_the_host(extended, loaded):
    """Nothing over time then takes part, so an extension changes nothing."""
    found = []
    for model in (extended, loaded[0]):
        comfy.model_management.load_models_gpu([model, *model.get_additional_models()])
        found.append(
            model.model.diffusion_model(
                drawn(6, 8, 8, 8),
                torch.full((6,), TIMESTEP),
                drawn(1, 1, 64, seed=1).expand(6, -1, -1),
                drawn(1, 768, seed=2).expand(6, -1),
                transformer_options={"wrappers": model.wrappers},
                num_video_frames=6,
                image_only_indicator=torch.ones(1, 6),
            )
        )
    assert error(*found) < 1e-5


def test_the_host_reckons_for_itself_where_its_own_layers_work(loaded, extended, extension):
    patched = extended.clone()
    patched.set_model_attn1_patch(lambda q, k, v, _options: (q, k, v))
    new = host.apply_extension(loaded[0], new_extension(host.base_weights(loaded[0]), 128))
    one, two = ({"positive": [{"cross_attn": torch.zeros(1, tokens, 64)}]} for tokens in (1, 2))
    told = {}
    for name, model, frames, conds in (
        ("patched", patched, 100, one),
        ("extended", extended, 100, one),
        ("two tokens", extended, 100, two),
        ("new", new, 20, one),
    ):
        *_, prepare = model.get_wrappers(WrappersMP.PREPARE_SAMPLING, "exvideo")
        prepare(lambda _model, shape, _, name=name: told.update({name: shape[0]}), model, [frames, 4, 64, 64], conds)
    assert told["patched"] == told["two tokens"] == 100 > told["extended"]
    assert told["new"] == 20


def test_the_precision_that_a_node_sets_is_reckoned_with(extended):
    """As the host's node for it does, by a patch of an object."""
    half, double = extended.clone(), extended.clone()
    half.add_object_patch("manual_cast_dtype", torch.float16)
    double.add_object_patch("manual_cast_dtype", torch.float64)
    assert [memory.computes_in(model) for model in (half, extended, double)] == [
        torch.float16,
        torch.float32,
        torch.float64,
    ]
    told = []
    for model in (half, double):
        *_, prepare = model.get_wrappers(WrappersMP.PREPARE_SAMPLING, "exvideo")
        prepare(lambda _model, shape, _: told.append(shape[0]), model, [1000, 4, 64, 64])
    assert told[0] < told[1]


def test_the_host_asks_for_what_a_pass_takes(extended, loaded, predict, monkeypatch):
    """The base is reckoned by its number of images; the extended model by what it holds."""

    class AskedError(Exception):
        """Ends a prediction where the host asks: what it predicts does not matter."""

    def listen(models, memory_required=0, **options):
        raise AskedError(memory_required, options["minimum_memory_required"])

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", listen)
    with pytest.raises(AskedError) as asked:
        predict(loaded[0], 100, side=32)
    base = asked.value.args
    with pytest.raises(AskedError) as asked:
        predict(extended, 100, side=32)
    wanted, least = asked.value.args
    needed = budget.plan_pass("auto", 32 * 100 * 32 * 32 * 4, 0, on_cpu=True).needed
    assert needed <= least < base[1]
    assert least < needed + 1.1 * base[1] / 100
    assert wanted < 2 * least + 1


def test_the_host_is_told_of_a_window_and_not_of_the_whole_clip(extended):
    windowed = host.with_drifting_windows(extended, torch.tensor([1.0, 0.0]), 16, 4, False, 128)
    told = []
    for which, frames in ((windowed, 4096), (extended, 16), (extended, 4096)):
        *_, prepare = which.get_wrappers(WrappersMP.PREPARE_SAMPLING, "exvideo")
        prepare(lambda _model, shape, _: told.append(shape[0]), which, [frames, 4, 64, 64])
    assert told[1] < told[0] < told[2]
    # Beside a window's pass, the noised latents and predictions of the whole clip.
    one = extended.model.memory_required([1, 4, 64, 64])
    window = budget.plan_pass("auto", 32 * 16 * 64 * 64 * 4, 0, on_cpu=True).needed
    needed = window + 7 * 4 * 4096 * 4 * 64 * 64
    assert needed <= told[0] * one < needed + one


def test_an_interrupt_ends_a_pass_in_the_middle(extended, predict):
    """By the host's own flag, set while the first block is at work: the second is not reached."""
    seen = []

    def interrupt(h, options):
        seen.append(options["block"])
        comfy.model_management.interrupt_current_processing()
        return h

    patched = extended.clone()
    patched.set_model_input_block_patch(interrupt)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            predict(patched, 30)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert seen == [("input", 0)]
    assert not any("forward" in vars(m) for m in extended.model.diffusion_model.modules())


def test_settings_are_checked(loaded, extension, run):
    for setting in ("auto", "fast", "balanced", "low"):
        assert run("ExVideoApply", model=loaded[0], exvideo=extension, memory=setting)[0].get_additional_models()
    with pytest.raises(ExVideoError, match="no memory setting huge: choose auto, fast, balanced, low"):
        run("ExVideoApply", model=loaded[0], exvideo=extension, memory="huge")


def test_a_flow_goes_on_on_the_cpu_where_memory_runs_out(like_a_gpu, monkeypatch, caplog):
    """After the first of three frames; the other two are as they would have been, and so are those of the next pair."""
    pair = [torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    times = [0.25, 0.5, 0.75]
    expected = list(host.between_frames()(*pair, times))
    like_a_gpu(64 * GIB)
    between, whole = host.between_frames(), interpolation.FlowBetween.__call__

    def fail_once(self, *args):
        monkeypatch.setattr(interpolation.FlowBetween, "__call__", whole)
        yield next(whole(self, *args))
        raise OUT_OF_MEMORY("CUDA out of memory")

    monkeypatch.setattr(interpolation.FlowBetween, "__call__", fail_once)
    for _ in range(2):
        found = list(between(*pair, times))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert [record.message for record in caplog.records if "ran out of memory" in record.message] == [
        "ExVideo Interpolate ran out of memory on cpu and goes on on the CPU, slower."
    ]


def test_a_device_that_gives_up_weights_has_more_to_work_in(like_a_gpu):
    """As newer hosts do, whose models say how much that is."""

    class Generous:
        def get_free_memory(self, device):
            return 40 * GIB

    like_a_gpu(GIB)
    clip = torch.empty(128, 8, 64, 64, dtype=torch.float16)
    assert not memory.Memory("auto", 320, Generous())(clip).park
    assert memory.Memory("auto", 320)(clip).park


WEIGHTS = 3.47 * GIB
ON_A_CARD = {"512×512": 2.86, "1024×576": 4.94}
"""GiB of a pass with 2 GiB to work in, as measured on an H100 (benchmarks/RESULTS.md)."""


@lru_cache
def real_peak(size, work, park):
    """GiB of a pass of 128 frames at SVD's own width, counted on fake tensors."""
    with torch.inference_mode(False):
        return unet_peak(lambda: our_unet(work, park), 128, size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gib", "size"),
    [(6, "512×512"), (8, "512×512"), (12, "512×512"), (16, "512×512"), (24, "512×512"), (12, "1024×576")],
)
def test_the_real_size_fits_what_is_free(gib, size, like_a_gpu):
    """By the plan for what the weights leave free."""
    like_a_gpu(gib * GIB - WEIGHTS)
    work = memory.Memory("auto", 320)(torch.empty(128, 8, *SIZES[size], dtype=torch.float16))
    peak = real_peak(size, work.budget, work.park)
    print(f"\n{gib} GiB, {size}: {peak:.2f} GiB with {work.budget / MIB:.0f} MiB to work in, parked: {work.park}")
    assert peak * GIB + WEIGHTS <= gib * GIB
    if work.budget == 2048 * MIB:  # what is counted is what a card does
        assert peak == pytest.approx(ON_A_CARD[size], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "park"), [("balanced", False), ("low", True)])
def test_the_real_size_stays_within_its_goal(setting, park):
    _, work = budget.BUDGETS[setting]
    peak = real_peak("512×512", work, park)
    print(f"\n512×512, {setting}, {work // MIB} MiB to work in, parked: {park}: {peak:.2f} GiB")
    assert peak <= GOALS["512×512"][park]


def test_latents_of_a_video_do_not_depend_on_free_memory(loaded, monkeypatch):
    """By which the host chooses how many pictures it encodes together, whose last digits differ."""
    video = torch.rand(9, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    much = host.encode_frames(loaded[2], video)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_args, **_kwargs: 1)
    assert torch.equal(host.encode_frames(loaded[2], video), much)
