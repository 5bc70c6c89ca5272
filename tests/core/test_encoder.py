"""The encoder, a program of its own: it may hang, fail or be missing, and a person may cancel while it works."""

import os
import time

import imageio_ffmpeg
import pytest
import torch

from exvideo_core import export, formats
from exvideo_core.export import save_preview, save_video
from exvideo_core.formats import FORMATS, offered_formats
from exvideo_core.types import ExVideoError


@pytest.fixture
def frames():
    return torch.rand(10, 48, 64, 3)


def save(folder, frames, format="mp4-h264"):
    """Save into a folder; returns the path of the video, or of the folder of pictures."""
    path = folder / f"a{FORMATS[format].suffix}"
    if FORMATS[format].pictures:
        path.mkdir()
    save_video(frames, path, fps=30, format=format)
    return path


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """Put a script of the shell in ffmpeg's place."""
    if os.name == "nt":
        pytest.skip("there is no such shell")

    def put(script):
        path = tmp_path / "ffmpeg"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))

    return put


@pytest.fixture
def started(monkeypatch):
    """The programs that were started."""
    programs, popen = [], export.subprocess.Popen
    monkeypatch.setattr(export.subprocess, "Popen", lambda *a, **k: programs.append(popen(*a, **k)) or programs[-1])
    return programs


def test_a_video_without_a_frame_is_no_success(tmp_path, frames, monkeypatch):
    cutting = FORMATS["mp4-h264"]._replace(filters="select=0")
    monkeypatch.setattr(formats, "FORMATS", {**FORMATS, "mp4-h264": cutting})
    with pytest.raises(ExVideoError, match="nothing was encoded"):
        save(tmp_path, frames)


def test_a_preview_can_be_stopped(tmp_path, frames, encoder, started):
    def stop():
        raise KeyboardInterrupt

    saved = save(tmp_path, frames, "mov-prores")
    encoder("kill -STOP $$")
    with pytest.raises(KeyboardInterrupt):
        save_preview(saved, tmp_path / "preview.mp4", 25, "mov-prores", stop)
    assert started[-1].poll() is not None


def test_stopping_ends_the_encoder(tmp_path, frames, started):
    def stopping():
        yield from frames[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_video(stopping(), tmp_path / "a.mp4", fps=30)
    assert started[-1].poll() is not None


def test_waiting_for_the_encoder_can_be_stopped(tmp_path, started):
    """A GIF's palette is made when all frames have come."""

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_video(torch.rand(30, 256, 256, 3), tmp_path / "a.gif", fps=30, format="gif", waiting=stop)
    assert started[-1].poll() is not None


@pytest.mark.parametrize(
    "script",
    ["kill -STOP $$", "sleep 30 & cat > /dev/null; wait", "sleep 30 <&0 & wait"],
    ids=["stopped", "a child that holds what it says", "a child that holds what it reads"],
)
def test_an_encoder_that_hangs_can_be_stopped(tmp_path, encoder, script, started):
    encoder(script)
    asked = []

    def stop():
        asked.append(time.monotonic())
        if len(asked) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_video(torch.rand(30, 256, 256, 3), tmp_path / "a.mp4", fps=30, waiting=stop)
    assert started[-1].poll() is not None
    # Far from the half minute that its children sleep.
    assert time.monotonic() - asked[0] < 10


def test_what_an_encoder_leaves_running_is_not_waited_for(tmp_path, encoder):
    encoder("sleep 30 & echo a reason >&2; exit 3")
    start = time.monotonic()
    with pytest.raises(ExVideoError, match="a reason"):
        save_video(torch.rand(3, 64, 64, 3), tmp_path / "a.mp4", fps=30)
    assert time.monotonic() - start < 10


def test_frames_do_not_pile_up_before_a_slow_encoder(tmp_path, encoder):
    encoder("sleep 1; cat > /dev/null")
    made = []

    def stream():
        for number in range(10):
            made.append((number, time.monotonic()))
            yield torch.zeros(256, 256, 3)

    with pytest.raises(ExVideoError, match="wrote nothing"):
        save_video(stream(), tmp_path / "a.mp4", 30)
    # One is on its way, one waits, one wants to; what is later came when the encoder had begun to read.
    assert made[4][1] - made[0][1] > 0.7


def test_an_ffmpeg_that_is_not_there_is_told(tmp_path, frames, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    with pytest.raises(ExVideoError, match=r"does not run .*IMAGEIO_FFMPEG_EXE"):
        save(tmp_path, frames)


@pytest.mark.parametrize(
    ("script", "told"), [("exit 3", "nothing, and ended with status 3"), ("true", r"wrote nothing.*IMAGEIO_FFMPEG_EXE")]
)
@pytest.mark.parametrize("format", ["mp4-h264", "png"])
def test_an_ffmpeg_that_does_nothing_is_told(tmp_path, frames, monkeypatch, encoder, script, told, format):
    encoder(script)
    monkeypatch.setattr(formats, "_encoders", formats._encoders.__wrapped__)
    assert offered_formats() == list(FORMATS)
    with pytest.raises(ExVideoError, match=told):
        save(tmp_path, frames, format)


def test_a_failing_encoder_says_why(tmp_path, frames, monkeypatch):
    broken = FORMATS["mp4-h264"]._replace(codec="no_such_encoder")
    monkeypatch.setattr(formats, "FORMATS", {**FORMATS, "mp4-h264": broken})
    with pytest.raises(ExVideoError, match="no_such_encoder"):
        save_video(frames.repeat(40, 1, 1, 1), tmp_path / "a.mp4", fps=30)
    assert "mp4-h264" not in offered_formats()


def test_without_ffmpeg_all_formats_are_listed_and_saving_says_what_to_do(tmp_path, frames, monkeypatch):
    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    monkeypatch.setattr(formats, "_encoders", formats._encoders.__wrapped__)
    assert offered_formats() == list(FORMATS)
    with pytest.raises(ExVideoError, match="imageio-ffmpeg"):
        save(tmp_path, frames)


def test_the_encoder_is_gone_after_a_failure(tmp_path, frames, started):
    with pytest.raises(ExVideoError):
        save_video([frames[0], frames[0, :8]], tmp_path / "a.mp4", fps=30)
    assert started[0].poll() is not None
    assert started[0].stdin.closed
