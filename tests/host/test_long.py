"""Videos of any length: chains of segments and drifting windows, stopped and gone on with."""

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode
from exvideo_pack.exvideo_core import host, sampling
from exvideo_pack.exvideo_core.types import ExVideoError

SIZE = {"width": 64, "height": 64}
RAW = {"normalize": False, "contrast": 1.0, "min_cfg": 1.0, "max_cfg": 1.0}
SHORT = {"segment_frames": 6, "overlap": 2, "steps": 3, "seed": 5, **SIZE}


class StoppedError(Exception):
    pass


@pytest.fixture
def picture():
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def extended(loaded, extension):
    """The extended model, which counts its passes and may be told to stop in one."""
    model = host.apply_extension(loaded[0], extension)
    counted = {"passes": 0, "stop": None}

    def watch(executor, *args, **kwargs):
        counted["passes"] += 1
        if counted["passes"] == counted["stop"]:
            raise StoppedError
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watch)
    return model, counted


@pytest.fixture
def long(run, loaded, extended, picture):
    def call(**inputs):
        _, clip_vision, vae = loaded
        given = {"model": extended[0], "clip_vision": clip_vision, "vae": vae, "init_image": picture, **SHORT}
        samples, fps = run("ExVideoLongSampler", **{**given, **inputs})
        assert fps == inputs.get("fps", 30)
        return samples["samples"]

    return call


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The output folder, for this test alone."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path / "exvideo" / "runs"


@pytest.mark.parametrize("mode", ["chain", "windows"])
@pytest.mark.parametrize("guidance", [(2.0, 2.0), (1.0, 3.0)])
def test_one_segment_is_what_the_sampler_makes(run, loaded, extended, long, picture, mode, guidance):
    _, clip_vision, vae = loaded
    cfg = dict(zip(("min_cfg", "max_cfg"), guidance, strict=True))
    shot = {"num_frames": 6, "seed": 5, **SIZE}
    conditions = run("ExVideoConditioning", clip_vision=clip_vision, vae=vae, init_image=picture, **shot)
    positive, negative, latent, _ = conditions
    (expected,) = run(
        "ExVideoSampler", model=extended[0], positive=positive, negative=negative, latent=latent, seed=5, steps=3, **cfg
    )
    assert torch.equal(long(total_frames=6, mode=mode, **cfg), expected["samples"])


def test_a_chain_goes_on_from_what_it_has_made(long):
    whole = long(total_frames=13, **RAW)
    assert whole.shape == (13, 4, 8, 8)
    assert torch.equal(long(total_frames=13, **RAW), whole)
    # What comes later changes nothing of what came before.
    for total in (6, 10):
        assert torch.equal(long(total_frames=total, **RAW), whole[:total])
    assert not torch.equal(long(total_frames=13, **{**RAW, "overlap": 3}), whole)
    assert not torch.equal(long(total_frames=13, token_from="picture", **RAW), whole)


@pytest.mark.parametrize("mode", ["chain", "windows"])
def test_a_second_pass_reworks_a_video(run, loaded, extended, long, picture, mode):
    """As the sampler does where one segment is all; and beyond, the less noise, the more stays."""
    _, clip_vision, vae = loaded
    video = torch.rand(14, 32, 32, 3, generator=torch.Generator().manual_seed(2))
    conditions = run(
        "ExVideoConditioning", clip_vision=clip_vision, vae=vae, init_image=picture, num_frames=6, init_video=video,
        seed=5, **SIZE,
    )  # fmt: skip
    positive, negative, latent, _ = conditions
    (expected,) = run(
        "ExVideoSampler", model=extended[0], positive=positive, negative=negative, latent=latent, seed=5, steps=3,
        denoise=0.5, **RAW,
    )  # fmt: skip
    second = {"mode": mode, "init_video": video, **RAW}
    assert torch.equal(long(total_frames=6, denoise=0.5, **second), expected["samples"])

    start = host.encode_frames(vae, torch.nn.functional.interpolate(video.movedim(-1, 1), (64, 64)).movedim(1, -1))
    far, near = ((long(total_frames=14, denoise=denoise, **second) - start).square().mean() for denoise in (0.9, 0.1))
    assert near < 0.2 * far
    with pytest.raises(ExVideoError, match="init_video has 14 frames"):
        long(total_frames=15, **second)


def test_a_run_that_reworks_another_video_is_refused(long, runs):
    video = torch.rand(10, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    second = {"total_frames": 10, "denoise": 0.5, "checkpoint_name": "mine", **RAW}
    made = long(init_video=video, **second)
    assert torch.equal(long(init_video=video, **second), made)
    with pytest.raises(ExVideoError, match="init_video"):
        long(init_video=1 - video, **second)


def test_what_comes_after_the_sampling_of_windows_may_change(long, extended, runs):
    inputs = {"total_frames": 10, "mode": "windows", "checkpoint_name": "mine", **RAW}
    first = long(**inputs)
    extended[1].update(passes=0)
    torch.testing.assert_close(long(**{**inputs, "contrast": 2.0}), 2 * first)
    assert extended[1]["passes"] <= 3


def test_normalisation_and_contrast_come_once_over_the_whole(long):
    from exvideo_pack.exvideo_core.sampling import post_process

    raw = long(total_frames=10, **RAW)
    assert torch.equal(long(total_frames=10, **{**RAW, "normalize": True}), post_process(raw, True, 1.0))


def test_segments_can_have_the_colours_of_the_first(long):
    matched = long(total_frames=10, match_first=True, **RAW)
    first, rest = matched[:6], matched[6:]
    for statistic in (torch.mean, torch.std):
        for channel in range(4):
            assert statistic(rest[:, channel]) == pytest.approx(float(statistic(first[:, channel])), abs=0.02)


@pytest.mark.parametrize("stop", [4, 8])
def test_a_chain_that_was_stopped_goes_on_to_the_same_bits(long, extended, runs, stop):
    counted = extended[1]
    expected = long(total_frames=14, **RAW)
    # cfg 1: one pass a step, three steps a segment, three segments.
    assert counted["passes"] == 9
    counted.update(passes=0, stop=stop)
    with pytest.raises(StoppedError):
        long(total_frames=14, checkpoint_name="mine", **RAW)
    kept = sorted(path.name for path in (runs / "mine").glob("segment*"))
    assert len(kept) == (stop - 1) // 3
    counted.update(passes=0, stop=None)
    assert torch.equal(long(total_frames=14, checkpoint_name="mine", **RAW), expected)
    assert counted["passes"] == 9 - 3 * len(kept)
    # And once more: all is there.
    counted.update(passes=0)
    assert torch.equal(long(total_frames=14, checkpoint_name="mine", **RAW), expected)
    assert counted["passes"] == 0


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_torn_file_costs_one_segment(long, extended, runs, caplog, damage):
    expected = long(total_frames=14, checkpoint_name="mine", **RAW)
    path = runs / "mine" / "segment_00001.latents"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        data[-5] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    extended[1].update(passes=0)
    assert torch.equal(long(total_frames=14, checkpoint_name="mine", **RAW), expected)
    assert extended[1]["passes"] == 3
    assert ("damaged" in caplog.text) == (damage != "gone")


@pytest.mark.parametrize("foreign", ["swapped", "seed", "size"])
def test_segments_of_another_place_or_run_are_made_again(long, extended, runs, caplog, foreign):
    expected = long(total_frames=14, checkpoint_name="mine", **RAW)
    one, two = (runs / "mine" / f"segment_{number:05}.latents" for number in (1, 2))
    other = {"swapped": {}, "seed": {"seed": 6}, "size": {"width": 128}}[foreign]
    if other:
        long(total_frames=14, checkpoint_name="other", **{**RAW, **other})
        one.write_bytes((runs / "other" / one.name).read_bytes())
    else:
        data = one.read_bytes()
        two.replace(one)
        two.write_bytes(data)
    extended[1].update(passes=0)
    assert torch.equal(long(total_frames=14, checkpoint_name="mine", **RAW), expected)
    assert extended[1]["passes"] == (3 if other else 6)
    assert ("is of another run" if other else "is another part") in caplog.text


@pytest.mark.parametrize("other", [{"steps": 8}, {"width": 128}])
def test_a_step_of_another_run_is_made_again(long, runs, caplog, other):
    inputs = {"total_frames": 8, "mode": "windows", **RAW}
    expected = long(checkpoint_name="mine", **inputs)
    long(checkpoint_name="other", **{**inputs, **other})
    (runs / "mine" / "step.latents").write_bytes((runs / "other" / "step.latents").read_bytes())
    assert torch.equal(long(checkpoint_name="mine", **inputs), expected)
    assert "is of another run" in caplog.text


def test_windows_that_were_stopped_go_on_at_their_step(long, extended, runs):
    counted, inputs = extended[1], {"total_frames": 14, "mode": "windows", **RAW}
    expected = long(**inputs)
    passes = counted["passes"]
    counted.update(passes=0, stop=passes - 1)
    with pytest.raises(StoppedError):
        long(checkpoint_name="mine", **inputs)
    counted.update(passes=0, stop=None)
    assert torch.equal(long(checkpoint_name="mine", **inputs), expected)
    assert counted["passes"] < passes


def test_a_run_of_windows_that_was_stopped_twice_goes_on_at_its_step(long, extended, runs):
    counted, inputs = extended[1], {"total_frames": 6, "mode": "windows", **RAW}
    expected = long(**inputs)
    for stop in (3, 2):  # each time amid the last of three steps
        counted.update(passes=0, stop=stop)
        with pytest.raises(StoppedError):
            long(checkpoint_name="mine", **inputs)
    counted.update(passes=0, stop=None)
    assert torch.equal(long(checkpoint_name="mine", **inputs), expected)
    assert counted["passes"] == 2


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"seed": 6}, "seed was 5 and is 6"), ({"overlap": 3}, "overlap was 2 and is 3"), ({"steps": 4}, "steps was 3")],
)
def test_other_settings_are_refused_with_what_differs(long, extended, runs, changed, told):
    long(total_frames=8, checkpoint_name="mine", **RAW)
    extended[1].update(passes=0)
    with pytest.raises(ExVideoError, match=told):
        long(total_frames=8, checkpoint_name="mine", **{**RAW, **changed})
    assert extended[1]["passes"] == 0


def test_another_model_or_picture_is_refused(run, long, loaded, extension, runs, picture):
    long(total_frames=8, checkpoint_name="mine", **RAW)
    with pytest.raises(ExVideoError, match="picture was"):
        long(total_frames=8, checkpoint_name="mine", init_image=1 - picture, **RAW)
    almost = picture.clone()
    almost[0, 40, 30, 1] += 1 / 255
    with pytest.raises(ExVideoError, match="picture was"):
        long(total_frames=8, checkpoint_name="mine", init_image=almost, **RAW)
    half = host.apply_extension(loaded[0], extension, 0.5)
    with pytest.raises(ExVideoError, match="model was"):
        long(total_frames=8, checkpoint_name="mine", model=half, **RAW)
    # Loaded or not, a model is the same one.
    comfy.model_management.unload_all_models()
    long(total_frames=8, checkpoint_name="mine", **RAW)


def test_other_encoders_are_refused(long, loaded, models, runs):
    from exvideo_pack.exvideo_core.tiny import CHECKPOINT

    long(total_frames=8, checkpoint_name="mine", **RAW)
    _, clip_vision, vae = host.load_svd(models / CHECKPOINT)
    long(total_frames=8, checkpoint_name="mine", clip_vision=clip_vision, vae=vae, **RAW)
    next(vae.first_stage_model.parameters()).add_(1)
    with pytest.raises(ExVideoError, match="encoders was"):
        long(total_frames=8, checkpoint_name="mine", vae=vae, **RAW)


def test_the_time_to_go_is_reckoned_from_what_was_sampled(long, extended, runs, caplog):
    caplog.set_level("INFO")
    extended[1].update(stop=10)
    with pytest.raises(StoppedError):
        long(total_frames=18, checkpoint_name="mine", **RAW)
    extended[1].update(stop=None)
    caplog.clear()
    long(total_frames=18, checkpoint_name="mine", **RAW)
    told = [record.message for record in caplog.records if record.message.startswith("ExVideo: segment")]
    assert ["to go" in text for text in told] == [False, False, False, True]


@pytest.mark.parametrize("loop", [False, True])
def test_windows_work_on_any_length(long, loop):
    for total in (7, 20):
        samples = long(total_frames=total, mode="windows", loop=loop, **RAW)
        assert samples.shape == (total, 4, 8, 8)
        assert samples.isfinite().all()


@pytest.mark.parametrize("total", [12, 5])
def test_a_loop_has_no_first_frame_but_for_the_noise(long, extended, monkeypatch, total):
    """Rolled noise gives the rolled loop: nothing else tells one frame from another, also where one window would do."""
    from exvideo_pack.exvideo_core import plan, sampling

    # The windows' edges stay where they are in this test, or they would roll with the step, not with the noise.
    monkeypatch.setattr(host.drifting, "drifting_windows", lambda total, length, overlap, step, loop: (
        plan.drifting_windows(total, length, overlap, 0, loop)
    ))  # fmt: skip
    inputs = {"total_frames": total, "mode": "windows", "loop": True, **RAW}
    plain = long(**inputs)
    length, overlap = plan.window_size(total, SHORT["segment_frames"], SHORT["overlap"], loop=True)
    noise, stride = sampling.latent_noise, length - overlap
    monkeypatch.setattr(sampling, "latent_noise", lambda latent, seed: noise(latent, seed).roll(stride, 0))
    torch.testing.assert_close(long(**inputs), plain.roll(stride, 0), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"overlap": 6}, "overlap = 6"),
        ({"token_from": "film"}, "choose segment or picture"),
        ({"overlap": 0}, "needs an overlap of 1 to 5"),
        ({"segment_frames": 1}, "at least 2 frames, .* raise segment_frames"),
        ({"segment_frames": 1, "overlap": 0}, "at least 2 frames, .* raise segment_frames"),
        ({"overlap": 6, "mode": "windows"}, "overlap = 6"),
        ({"segment_frames": 129, "total_frames": 200}, "129 frames are longer than this extension reaches, 128"),
        ({"loop": True}, "windows mode"),
        ({"mode": "spiral"}, "choose chain or windows"),
        ({"checkpoint_name": "../outside"}, "checkpoint_name"),
        ({"checkpoint_name": "."}, "checkpoint_name"),
        ({"checkpoint_name": "nul\0"}, "checkpoint_name"),
        ({"checkpoint_name": "half\ud800"}, "does not name one: choose a checkpoint_name"),
    ],
)
def test_bad_input_is_told_before_any_sampling(long, extended, runs, inputs, told):
    with pytest.raises(ExVideoError, match=told):
        long(**{"total_frames": 14, **inputs})
    assert extended[1]["passes"] == 0
    assert not runs.exists()


def test_easy_cache_is_for_passes_that_are_whole_steps(long, extended):
    model, counted = extended
    cached = EasyCacheNode.execute(model, 0.9, 0.0, 1.0, False).args[0]
    for inputs in ({"total_frames": 14}, {"total_frames": 6, "loop": True}):
        with pytest.raises(ExVideoError, match="EasyCache skips single passes"):
            long(model=cached, mode="windows", **inputs)
    assert counted["passes"] == 0
    assert long(model=cached, mode="windows", total_frames=6).isfinite().all()
    assert long(model=cached, total_frames=14).isfinite().all()


def test_a_folder_of_other_things_is_refused(long, extended, runs):
    folder = runs / "mine"
    folder.mkdir(parents=True)
    (folder / "holiday.jpg").write_text("")
    with pytest.raises(ExVideoError, match="holds other files"):
        long(total_frames=14, checkpoint_name="mine")
    for damaged in ("{ half", "", "null"):
        (folder / "run.json").write_text(damaged)
        with pytest.raises(ExVideoError, match=r"run.json should hold the settings of a long run, but it is damaged"):
            long(total_frames=14, checkpoint_name="mine")
    (runs / "file").write_text("")
    with pytest.raises(ExVideoError, match="cannot be kept"):
        long(total_frames=14, checkpoint_name="file")
    assert extended[1]["passes"] == 0


def test_a_single_frame_and_a_small_picture(long, caplog):
    assert long(total_frames=1, **RAW).shape == (1, 4, 8, 8)
    assert long(total_frames=2, init_image=torch.rand(1, 20, 30, 3), **RAW).shape == (2, 4, 8, 8)
    assert "is enlarged to 64×64" in caplog.text


def test_guidance_grows_over_the_whole_chain(long, monkeypatch):
    asked, theirs = [], sampling.linear_guidance
    monkeypatch.setattr(sampling, "linear_guidance", lambda *numbers: asked.append(numbers) or theirs(*numbers))
    long(total_frames=10, **{**RAW, "min_cfg": 1.0, "max_cfg": 3.0})
    assert asked == [(1.0, 3.0, 0, 10), (1.0, 3.0, 4, 10)]


def test_a_segment_goes_on_from_the_picture_of_its_first_frame(long, loaded, monkeypatch):
    from exvideo_pack.exvideo_core.decode import decode_windows
    from exvideo_pack.nodes import long_sample

    pictures, tokens, theirs = [], [], long_sample.condition

    def noted(clip_vision, vae, image, shape, ids, seed, token_of):
        pictures.append(image)
        tokens.append(token_of)
        return theirs(clip_vision, vae, image, shape, ids, seed, token_of)

    monkeypatch.setattr(long_sample, "condition", noted)
    vae, inputs = loaded[2], {**RAW, "contrast": 2.0}
    made = long(total_frames=10, **inputs)[:6]
    frames = vae.process_output(decode_windows(made, host.frame_decoder(vae, made, 6), 6, 0))
    assert torch.equal(pictures[1], frames[4:5])
    assert tokens == [None, None]
    long(total_frames=10, token_from="picture", **inputs)
    assert torch.equal(tokens[3], pictures[0])


def test_progress_counts_the_steps_of_all_segments(long, monkeypatch):
    told = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: told.append((value, total)))
    long(total_frames=10, **RAW)
    assert [value for value, total in told if total == 6] == [1, 2, 3, 4, 5, 6]
