"""The clips of a folder of videos: encoded once, kept, and encoded again where they must be."""

import hashlib
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import imageio_ffmpeg
import pytest
import torch

from dev.videos import damage, draw_video
from exvideo_core.lock import locked
from exvideo_core.post_tuning import cache as caching
from exvideo_core.post_tuning.cache import cache_clips
from exvideo_core.post_tuning.clips import read_clips, video_files
from exvideo_core.post_tuning.motion import motion_bucket, motion_score
from exvideo_core.types import ClipShape, ExVideoError

SHAPE = ClipShape(12, 48, 64)


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
    draw_video(folder / "a.mp4")
    draw_video(folder / "more" / "b.webm", source="mandelbrot=size=90x60:rate=30", seconds=0.5)
    draw_video(folder / "short.mp4", seconds=0.2)
    (folder / "broken.mp4").write_bytes(b"nothing")
    return folder


def test_a_folder_without_videos_is_told(tmp_path):
    with pytest.raises(ExVideoError, match="There is no folder"):
        video_files(tmp_path / "nowhere")
    with pytest.raises(ExVideoError, match="There is no folder"):
        video_files(tmp_path / ("n" * 300))
    with pytest.raises(ExVideoError, match="which is empty: put"):
        video_files(tmp_path)
    for number in range(3):
        (tmp_path / f"{number}.PNG").touch()
    with pytest.raises(ExVideoError, match="which has only pictures and other files: put"):
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
    video = draw_video(tmp_path / "a.mp4")
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


def test_clips_of_no_numbers_are_told_and_encoded_again(videos, tmp_path):
    """As an autoencoder in half precision may make them."""

    class OfNoNumbers(ByEighths):
        def __call__(self, frames):
            latents, token = super().__call__(frames)
            return latents * float("nan"), token

    with pytest.raises(ExVideoError, match=r"a.mp4: its latents or its image token are no finite numbers"):
        cache_clips(videos, SHAPE, 25, OfNoNumbers(), tmp_path / "cache")
    assert len(cache_clips(videos, SHAPE, 25, ByEighths(), tmp_path / "cache"))


def test_several_at_once_encode_each_video_once_and_wait_for_each_other(videos, tmp_path):
    """As processes that train together do: each has all clips in the end, in the same order, and made its part."""
    both = threading.Barrier(2, timeout=60)

    class Slow(ByEighths):
        def __call__(self, frames):
            if not self.asked:
                both.wait()  # so that each has begun one before the other has ended its own
            return super().__call__(frames)

    encoders = Slow(), Slow()
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(cache_clips, videos, SHAPE, 30, encoder, tmp_path / "cache") for encoder in encoders]
    first, second = (run.result() for run in runs)
    assert sorted(encoder.asked for encoder in encoders) == [1, 2]
    assert len(first) == len(second) == 3
    assert first.identity == second.identity
    assert first.skipped == second.skipped
    assert len(first.skipped) == 2
    assert not list((tmp_path / "cache").glob("*.lock"))


def test_a_video_that_another_encodes_is_asked_about_until_it_has_ended(videos, tmp_path, caplog):
    """So that waiting can be stopped; it is told once."""
    caplog.set_level("INFO")
    cache, encoder, asked = tmp_path / "cache", ByEighths(), []
    cache_clips(videos, SHAPE, 30, encoder, cache)
    index = next(path for path in cache.glob("*.json") if json.loads(path.read_text())["video"] == "a.mp4")
    index.unlink()

    def stop(done, of):
        asked.append(done)
        if len(asked) > 6:
            raise KeyboardInterrupt

    with locked(cache, "It is taken.", f"{index.stem}.lock"), pytest.raises(KeyboardInterrupt):
        cache_clips(videos, SHAPE, 30, encoder, cache, stop)
    assert asked == [0, 0, 1, 2, 3, 3, 3]
    assert caplog.text.count("waits for another process, which encodes a.mp4") == 1
    assert encoder.asked == 3
    assert len(cache_clips(videos, SHAPE, 30, encoder, cache)) == 3
    assert index.exists()
    assert encoder.asked == 3  # its clips are those that were there


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


def test_a_damaged_video_is_skipped_and_leaves_nothing(videos, tmp_path):
    damage(draw_video(videos / "a.mp4", "-pix_fmt", "yuv420p", seconds=2))
    cache = tmp_path / "cache"
    clips = cache_clips(videos, SHAPE, 30, ByEighths(), cache)
    assert [text.partition(" (")[0] for text in clips.skipped] == [
        "a.mp4: it is damaged", "broken.mp4: it cannot be read as a video",
        "short.mp4: it has 6 frames at 30 a second, and a clip needs 12",
    ]  # fmt: skip
    assert len(clips) == len(list(cache.glob("*.clip"))) == 1


def test_a_damaged_video_is_encoded_once_for_each_ffmpeg(videos, tmp_path, monkeypatch):
    """Damage is known when all of it has been encoded, which may take hours; another ffmpeg may get over it."""
    damage(draw_video(videos / "a.mp4", "-pix_fmt", "yuv420p", seconds=2))
    encoder, cache = ByEighths(), tmp_path / "cache"
    told = cache_clips(videos, SHAPE, 30, encoder, cache).skipped
    asked = encoder.asked
    assert cache_clips(videos, SHAPE, 30, encoder, cache).skipped == told
    assert encoder.asked == asked
    monkeypatch.setattr(caching, "reader", lambda: "ffmpeg version 99")
    cache_clips(videos, SHAPE, 30, encoder, cache)
    assert encoder.asked > asked


@pytest.mark.skipif(sys.platform == "win32", reason="by a script of the shell")
def test_pale_clips_are_encoded_anew_when_an_ffmpeg_knows_hdr(tmp_path, monkeypatch):
    """As the log advises; and a run that learned from the pale ones is another."""
    grey = "nullsrc=size=64x64:rate=30,format=yuv420p10le,geq=lum='64+876*0.75':cb=512:cr=512"
    (tmp_path / "videos").mkdir()
    draw_video(tmp_path / "videos" / "a.mkv", "-vf", "setparams=color_trc=arib-std-b67", "-c:v", "ffv1", source=grey)
    plain = tmp_path / "ffmpeg"
    plain.write_text(f'#!/bin/sh\n"{imageio_ffmpeg.get_ffmpeg_exe()}" "$@" | sed "s/zscale/zscal_/"\n')
    plain.chmod(0o755)
    encoder, cache, shape = ByEighths(), tmp_path / "cache", ClipShape(12, 32, 32)
    with monkeypatch.context() as patch:
        patch.setenv("IMAGEIO_FFMPEG_EXE", str(plain))
        pale = [cache_clips(tmp_path / "videos", shape, 30, encoder, cache) for _ in range(2)][1]
    asked = encoder.asked
    right = [cache_clips(tmp_path / "videos", shape, 30, encoder, cache) for _ in range(2)][1]
    assert encoder.asked == 2 * asked
    assert pale.identity != right.identity
    assert right[0].latents.mean() > pale[0].latents.mean() + 0.05


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
    draw_video(videos / "a.mp4", source="testsrc2=size=160x120:rate=30")
    cache_clips(videos, SHAPE, 30, encoder, cache)
    assert encoder.asked == before + 2


def test_a_video_that_is_taken_away_meanwhile_is_told_and_passed_over(videos, tmp_path):
    names = sorted(path.name for path in videos.iterdir())

    def take_away(done, _of):
        if done == 1:
            (videos / names[-1]).unlink()

    clips = cache_clips(videos, SHAPE, 30, ByEighths(), tmp_path / "cache", take_away)
    assert f"{names[-1]}: it is no longer there" in clips.skipped
    assert len(clips)


def test_an_interrupted_encoding_goes_on(videos, tmp_path):
    class Interrupted(ByEighths):
        def __call__(self, frames):
            if self.asked == 1:
                raise KeyboardInterrupt
            return super().__call__(frames)

    with pytest.raises(KeyboardInterrupt):
        cache_clips(videos, SHAPE, 30, Interrupted(), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.json"))
    assert len(cache_clips(videos, SHAPE, 30, encoder := ByEighths(), tmp_path / "cache")) == 3
    assert encoder.asked == 2  # the first clip was there


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


@pytest.mark.parametrize("kept", [0, -1])
def test_a_clip_that_was_cut_short_is_encoded_again(videos, tmp_path, kept):
    """As by a full disk, or a copy that was stopped: of one video, and before anything is learned."""
    encoder, cache = ByEighths(), tmp_path / "cache"
    clips = cache_clips(videos, SHAPE, 30, encoder, cache)
    expected = [clips[number].latents for number in range(3)]
    first, *_ = sorted(cache.glob("*_0001.clip"))
    first.write_bytes(first.read_bytes()[:kept])
    again = cache_clips(videos, SHAPE, 30, encoder, cache)
    assert encoder.asked == 4  # that one alone
    assert all(torch.equal(again[number].latents, expected[number]) for number in range(3))


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


def test_texts_of_the_cache_can_be_read(videos, tmp_path):
    cache_clips(videos, SHAPE, 30, ByEighths(), tmp_path / "cache")
    texts = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*.json")]
    assert {text["video"] for text in texts} == {"a.mp4", "b.webm", "short.mp4", "broken.mp4"}


def test_hidden_files_are_no_videos(tmp_path):
    """As a system's own, ._a.mp4 say, beside what was copied from it, and what lies in a disk's wastebasket."""
    for name in ("._a.mp4", "a.mp4", ".Trash-1000/files/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in video_files(tmp_path)] == ["a.mp4"]
