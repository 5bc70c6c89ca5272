"""Post-tuning's parts that need no ComfyUI: chance, loss, motion, clips out of files, the cache."""

import hashlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import imageio_ffmpeg
import pytest
import torch

from dev import reference
from exvideo_core.extension import longer_extension, new_extension, position_ids
from exvideo_core.post_tuning import cache as caching
from exvideo_core.post_tuning.cache import cache_clips
from exvideo_core.post_tuning.clips import read_clips, video_files
from exvideo_core.post_tuning.curve import INK, loss_curve
from exvideo_core.post_tuning.engine import Engine
from exvideo_core.post_tuning.motion import THRESHOLDS, motion_bucket, motion_score
from exvideo_core.post_tuning.objective import draw, loss, noise_like
from exvideo_core.post_tuning.recipe import Recipe
from exvideo_core.schedule import sigmas
from exvideo_core.tiny import LAYOUT, draw_checkpoint
from exvideo_core.types import ClipShape, ExVideoError

SHAPE = ClipShape(12, 48, 64)


def make_video(path, *options, source="testsrc=size=160x120:rate=30", seconds=1.0):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "lavfi", "-i", source, "-t", str(seconds)]
    subprocess.run([*command, *options, str(path)], check=True)
    return path


# --- chance and loss -------------------------------------------------------------------------------------------


def test_every_clip_comes_once_before_any_comes_again():
    order = [draw(3, step, 7).clip for step in range(70)]
    epochs = [order[i : i + 7] for i in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_chance_depends_on_seed_and_step_alone():
    assert draw(1, 5, 9) == draw(1, 5, 9)
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


# --- clips out of files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", ["-pix_fmt", "yuv420p"]), ("a.webm", []), ("a.mkv", ["-c:v", "ffv1"]), ("a.avi", ["-c:v", "mjpeg"])],
)
def test_a_video_becomes_clips_of_the_wanted_size(tmp_path, name, options):
    clips = list(read_clips(make_video(tmp_path / name, *options), SHAPE, 30))
    assert [tuple(clip.shape) for clip in clips] == [(12, 48, 64, 3)] * 2  # 30 frames: two clips, six frames left
    assert clips[0].dtype == torch.uint8


def test_the_centre_is_cropped_and_proportions_stay(tmp_path):
    """A red, a green and a blue third, twice as wide as wanted: the green is left, and a quarter of each other."""
    source = "color=red:size=60x60,drawbox=x=20:w=20:h=60:color=lime:t=fill,drawbox=x=40:w=20:h=60:color=blue:t=fill"
    video = make_video(tmp_path / "wide.mkv", "-vf", "scale=240:60:flags=neighbor", "-c:v", "ffv1", source=source)
    (clip, *_) = read_clips(video, ClipShape(2, 32, 64), 25)
    row = clip[0, 16].int()
    red, green, blue = (int((row[:, c] > 128).sum()) for c in range(3))
    assert abs(red - green / 4) <= 2
    assert abs(red - blue) <= 2
    assert 38 <= green <= 46


def test_frames_are_repeated_or_left_out_for_the_wanted_rate(tmp_path):
    """Of a video whose brightness grows with its frame number, at three times and at half the rate."""
    source = "nullsrc=size=32x32:rate=10,geq=lum='16+4*N':cb=128:cr=128"
    video = make_video(tmp_path / "ramp.mkv", "-c:v", "ffv1", source=source, seconds=4)
    slow, fast = (next(read_clips(video, ClipShape(16, 32, 32), fps))[:, 16, 16, 0].float() for fps in (5, 30))
    steps = [float(values.diff().mean()) for values in (slow, fast)]
    assert steps[0] == pytest.approx(6 * steps[1], rel=0.15)


def test_what_is_no_video_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("not a video")
    make_video(tmp_path / "short.mp4", seconds=0.2)
    whole = make_video(tmp_path / "whole.mp4", seconds=2)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ExVideoError, match="cannot be read as a video"):
        list(read_clips(tmp_path / "a.txt", SHAPE, 30))
    with pytest.raises(ExVideoError, match="has 6 frames at 30 a second, and a clip needs 12"):
        list(read_clips(tmp_path / "short.mp4", SHAPE, 30))
    with pytest.raises(ExVideoError, match="cannot be read as a video"):
        list(read_clips(tmp_path / "cut.mp4", SHAPE, 30))


def test_a_folder_without_videos_is_told(tmp_path):
    with pytest.raises(ExVideoError, match="There is no folder"):
        video_files(tmp_path / "nowhere")
    with pytest.raises(ExVideoError, match="There is no folder"):
        video_files(tmp_path / ("n" * 300))
    with pytest.raises(ExVideoError, match="but nothing"):
        video_files(tmp_path)
    for number in range(3):
        (tmp_path / f"{number}.PNG").touch()
    with pytest.raises(ExVideoError, match="but 3 pictures or other files"):
        video_files(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="there links need a permission")
def test_links_to_folders_are_followed_and_each_folder_is_read_once(tmp_path):
    """Links that lead back, up, to each other or nowhere neither hang nor bring anything a second time."""
    videos, elsewhere, above = tmp_path / "in" / "videos", tmp_path / "elsewhere", tmp_path / "in" / "above.mp4"
    (videos / "sub").mkdir(parents=True)
    (elsewhere / "deep").mkdir(parents=True)
    for path in (above, videos / "sub" / "own.mp4", elsewhere / "deep" / "far.mp4", elsewhere / "b.mp4"):
        path.touch()
    for link, target in {
        videos / "far": elsewhere, videos / "a_link": videos / "sub", videos / "sub" / "up": videos,
        videos / "parent": videos.parent, videos / "nowhere": tmp_path / "none", videos / "itself": videos / "itself",
        elsewhere / "deep" / "back": elsewhere, elsewhere / "videos": videos,
    }.items():  # fmt: skip
        link.symlink_to(target)
    (tmp_path / "link").symlink_to(videos)
    for folder in (videos, tmp_path / "link"):
        found = [path.relative_to(folder).as_posix() for path in video_files(folder)]
        assert found == ["far/b.mp4", "far/deep/far.mp4", "sub/own.mp4"]


def test_texts_and_what_post_tuning_keeps_are_no_videos(tmp_path):
    """ffmpeg draws some texts as videos; a run and its cache may lie among the videos that it learns from."""
    video = make_video(tmp_path / "a.mp4")
    (tmp_path / "run").mkdir()
    text = "what is seen\n" * 1000
    for name in ("a.txt", "release.NFO", "a.srt", "list.json", "run/training.state", "run/extension.safetensors"):
        (tmp_path / name).write_text(text)
    encoder, cache = ByEighths(), tmp_path / "cache"
    for _ in range(2):
        assert len(cache_clips(tmp_path, SHAPE, 30, encoder, cache)) == 2
        assert video_files(tmp_path) == [video]


def test_an_ffmpeg_that_does_not_run_is_told_and_blamed_on_no_video(videos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
        with pytest.raises(ExVideoError, match=r"Videos are read by ffmpeg, and it does not run .*IMAGEIO_FFMPEG_EXE"):
            cache_clips(videos, SHAPE, 30, ByEighths(), tmp_path / "cache")
    assert len(cache_clips(videos, SHAPE, 30, ByEighths(), tmp_path / "cache")) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="by a script of the shell")
def test_a_video_that_could_not_be_read_is_tried_again(videos, tmp_path, monkeypatch):
    """An ffmpeg that fails is told of each video, and no longer once it works; what is too short stays known."""
    failing, encoder, cache = tmp_path / "ffmpeg", ByEighths(), tmp_path / "cache"
    failing.write_text("#!/bin/sh\necho 'no memory' >&2\nexit 1\n")
    failing.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("IMAGEIO_FFMPEG_EXE", str(failing))
        with pytest.raises(ExVideoError, match=r"None of the 4 files .* cannot be read as a video \(ffmpeg: no memory"):
            cache_clips(videos, SHAPE, 30, encoder, cache)
    clips = cache_clips(videos, SHAPE, 30, encoder, cache)
    assert (len(clips), encoder.asked) == (3, 3)
    assert "short.mp4: it has 6 frames" in clips.skipped[1]
    read = []
    monkeypatch.setattr(caching, "read_clips", lambda video, *how: read.append(video.name) or read_clips(video, *how))
    assert cache_clips(videos, SHAPE, 30, encoder, cache).skipped == clips.skipped
    assert read == ["broken.mp4"]


# --- the cache -------------------------------------------------------------------------------------------------


class ByEighths:
    """Latents are pixels eight apart, four values each; counts what it is asked for."""

    def __init__(self, identity="a"):
        self.identity, self.asked = identity, 0

    def __call__(self, frames):
        self.asked += 1
        grey = frames.mean(-1)[:, None, ::8, ::8]
        return grey.expand(-1, 4, -1, -1), frames[:1].mean().view(1, 1, 1)


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    make_video(folder / "a.mp4")
    make_video(folder / "more" / "b.webm", source="mandelbrot=size=90x60:rate=30", seconds=0.5)
    make_video(folder / "short.mp4", seconds=0.2)
    (folder / "broken.mp4").write_bytes(b"nothing")
    return folder


def test_clips_are_encoded_once(videos, tmp_path, caplog):
    encoder, cache = ByEighths(), tmp_path / "cache"
    clips = cache_clips(videos, SHAPE, 30, encoder, cache)
    assert (len(clips), encoder.asked) == (3, 3)
    assert [text.split(":")[0] for text in clips.skipped] == ["broken.mp4", "short.mp4"]
    assert "broken.mp4" in caplog.text
    again = cache_clips(videos, SHAPE, 30, encoder, cache)
    assert (len(again), encoder.asked, again.skipped) == (3, 3, clips.skipped)
    pixels = next(read_clips(videos / "a.mp4", SHAPE, 30)).float() / 255
    expected, _ = ByEighths()(pixels)
    torch.testing.assert_close(again[0].latents, expected, rtol=0, atol=1e-3)
    assert again[0].motion_bucket_id == motion_bucket(motion_score(pixels))


def test_what_changes_the_clips_is_encoded_anew(videos, tmp_path):
    encoder, cache = ByEighths(), tmp_path / "cache"
    for shape, fps in ((SHAPE, 30), (SHAPE, 15), (ClipShape(6, 48, 64), 30)):
        before = encoder.asked
        cache_clips(videos, shape, fps, encoder, cache)
        assert encoder.asked > before
    other = ByEighths("b")
    cache_clips(videos, SHAPE, 30, other, cache)
    assert other.asked == 3
    before = encoder.asked
    make_video(videos / "a.mp4", source="testsrc2=size=160x120:rate=30")
    cache_clips(videos, SHAPE, 30, encoder, cache)
    assert encoder.asked == before + 2


def test_an_interrupted_encoding_is_begun_again(videos, tmp_path):
    class Interrupted(ByEighths):
        def __call__(self, frames):
            if self.asked == 1:
                raise KeyboardInterrupt
            return super().__call__(frames)

    with pytest.raises(KeyboardInterrupt):
        cache_clips(videos, SHAPE, 30, Interrupted(), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.json"))
    assert len(cache_clips(videos, SHAPE, 30, ByEighths(), tmp_path / "cache")) == 3


def test_a_clip_that_is_gone_is_encoded_again(videos, tmp_path):
    encoder, cache = ByEighths(), tmp_path / "cache"
    clips = cache_clips(videos, SHAPE, 30, encoder, cache)
    first, *_ = sorted(cache.glob("*.clip"))
    first.write_bytes(b"damaged")
    with pytest.raises(ExVideoError, match="Remove it, and it is made again"):
        [clips[number] for number in range(3)]
    first.unlink()
    again = cache_clips(videos, SHAPE, 30, encoder, cache)
    assert all(again[number].latents.isfinite().all() for number in range(3))
    assert (again.identity, len(clips)) == (clips.identity, len(again))


def test_clips_are_in_no_list_of_models_and_those_of_an_older_version_stay_known(videos, tmp_path):
    """They ended in .safetensors, as the names in the texts beside them did, from which a run knew them again."""
    encoder, cache = ByEighths(), tmp_path / "cache"
    clips = cache_clips(videos, SHAPE, 30, encoder, cache)
    assert not list(cache.glob("*.safetensors"))
    for path in cache.glob("*.clip"):
        path.rename(path.with_suffix(".safetensors"))
    names = []
    for index in sorted(cache.glob("*.json"), key=lambda path: json.loads(path.read_text())["video"]):
        index.write_text(index.read_text().replace(".clip", ".safetensors"))
        names += json.loads(index.read_text())["clips"]
    again = cache_clips(videos, SHAPE, 30, encoder, cache)
    assert encoder.asked == 3
    assert torch.equal(again[2].latents, clips[2].latents)
    assert not list(cache.glob("*.safetensors"))
    assert again.identity == clips.identity == hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are texts there")
def test_names_that_are_no_texts_are_replaced(videos, tmp_path):
    os.rename(videos / "a.mp4", os.fsencode(videos) + b"/\xe9t\xe9.mp4")
    os.rename(videos / "broken.mp4", os.fsencode(videos) + b"/\xe9.mp4")
    clips = cache_clips(videos, SHAPE, 30, ByEighths(), tmp_path / "cache")
    assert len(clips) == 3
    assert [text.split(":")[0] for text in clips.skipped] == ["short.mp4", "?.mp4"]


def test_a_folder_of_which_nothing_can_be_used_is_told(videos, tmp_path):
    with pytest.raises(ExVideoError, match=r"None of the 4 files .* a\.mp4: it has 30 frames .*and 1 more"):
        cache_clips(videos, ClipShape(100, 48, 64), 30, ByEighths(), tmp_path / "cache")


def test_a_damaged_text_of_the_cache_costs_one_video(videos, tmp_path):
    cache = tmp_path / "cache"
    clips = cache_clips(videos, SHAPE, 30, ByEighths(), cache)
    for path in cache.glob("*.json"):
        path.write_text(path.read_text()[:-9])
    assert cache_clips(videos, SHAPE, 30, ByEighths(), cache).identity == clips.identity


@pytest.mark.parametrize("text", ["[]", "null", "3", "{}", '{"clips": null}', '{"clips": [3]}', '{"clips": []}'])
def test_a_text_of_the_cache_that_says_something_else_costs_one_video(videos, tmp_path, text):
    cache = tmp_path / "cache"
    clips = cache_clips(videos, SHAPE, 30, ByEighths(), cache)
    for path in cache.glob("*.json"):
        path.write_text(text)
    again = cache_clips(videos, SHAPE, 30, ByEighths(), cache)
    assert (again.identity, again.skipped) == (clips.identity, clips.skipped)


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    """Also where there is nothing to write but that a video cannot be used."""
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ExVideoError, match=r"cannot be kept in .*cache .*: make it writable"):
        cache_clips(folder, SHAPE, 30, ByEighths(), tmp_path / "cache")


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


def test_texts_of_the_cache_can_be_read(videos, tmp_path):
    cache_clips(videos, SHAPE, 30, ByEighths(), tmp_path / "cache")
    texts = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*.json")]
    assert {text["video"] for text in texts} == {"a.mp4", "b.webm", "short.mp4", "broken.mp4"}


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
