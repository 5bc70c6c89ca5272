"""Videos of any length: chains of segments and drifting windows."""

import comfy.utils
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode
from exvideo_pack.exvideo_core import host, sampling
from exvideo_pack.exvideo_core.types import ExVideoError

from tests.host.long_runs import RAW, SHORT, SIZE


@pytest.mark.parametrize("mode", ["chain", "windows"])
@pytest.mark.parametrize("guidance", [(2.0, 2.0), (1.0, 3.0)])
def test_one_segment_is_what_the_sampler_makes(run, loaded, watched, long, picture, mode, guidance):
    _, clip_vision, vae = loaded
    cfg = dict(zip(("min_cfg", "max_cfg"), guidance, strict=True))
    shot = {"num_frames": 6, "seed": 5, **SIZE}
    conditions = run("ExVideoConditioning", clip_vision=clip_vision, vae=vae, init_image=picture, **shot)
    positive, negative, latent, _ = conditions
    (expected,) = run(
        "ExVideoSampler", model=watched[0], positive=positive, negative=negative, latent=latent, seed=5, steps=3, **cfg
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
def test_a_second_pass_reworks_a_video(run, loaded, watched, long, picture, mode):
    """As the sampler does where one segment is all; and beyond, the less noise, the more stays."""
    _, clip_vision, vae = loaded
    video = torch.rand(14, 32, 32, 3, generator=torch.Generator().manual_seed(2))
    conditions = run(
        "ExVideoConditioning", clip_vision=clip_vision, vae=vae, init_image=picture, num_frames=6, init_video=video,
        seed=5, **SIZE,
    )  # fmt: skip
    positive, negative, latent, _ = conditions
    (expected,) = run(
        "ExVideoSampler", model=watched[0], positive=positive, negative=negative, latent=latent, seed=5, steps=3,
        denoise=0.5, **RAW,
    )  # fmt: skip
    second = {"mode": mode, "init_video": video, **RAW}
    assert torch.equal(long(total_frames=6, denoise=0.5, **second), expected["samples"])

    start = host.encode_frames(vae, torch.nn.functional.interpolate(video.movedim(-1, 1), (64, 64)).movedim(1, -1))
    far, near = ((long(total_frames=14, denoise=denoise, **second) - start).square().mean() for denoise in (0.9, 0.1))
    assert near < 0.2 * far
    with pytest.raises(ExVideoError, match="init_video has 14 frames"):
        long(total_frames=15, **second)


def test_progress_goes_on_within_a_step_of_windows(long, monkeypatch):
    """Of a long clip one takes minutes."""
    told = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: told.append((value, total)))
    long(total_frames=20, mode="windows", **RAW)
    values = [value for value, total in told if total == 300]
    assert values == sorted(values)
    for step in range(3):
        assert len({value for value in values if 100 * step < value < 100 * (step + 1)}) >= 3
    assert values[-1] == 300


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


@pytest.mark.parametrize("loop", [False, True])
def test_windows_work_on_any_length(long, loop):
    for total in (7, 20):
        samples = long(total_frames=total, mode="windows", loop=loop, **RAW)
        assert samples.shape == (total, 4, 8, 8)
        assert samples.isfinite().all()


@pytest.mark.parametrize("total", [12, 4])
def test_a_loop_has_no_first_frame_but_for_the_noise(long, watched, monkeypatch, total):
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
def test_bad_input_is_told_before_any_sampling(long, watched, runs, inputs, told):
    with pytest.raises(ExVideoError, match=told):
        long(**{"total_frames": 14, **inputs})
    assert watched[1]["passes"] == 0
    assert not runs.exists()


def test_easy_cache_is_for_passes_that_are_whole_steps(long, watched):
    model, counted = watched
    cached = EasyCacheNode.execute(model, 0.9, 0.0, 1.0, False).args[0]
    for inputs in ({"total_frames": 14}, {"total_frames": 6, "loop": True}):
        with pytest.raises(ExVideoError, match="EasyCache skips single passes"):
            long(model=cached, mode="windows", **inputs)
    assert counted["passes"] == 0
    assert long(model=cached, mode="windows", total_frames=6).isfinite().all()
    assert long(model=cached, total_frames=14).isfinite().all()


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
