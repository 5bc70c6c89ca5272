import json

import imageio_ffmpeg
import pytest
import torch

from exvideo_core import export
from exvideo_core.export import Audio, save_video
from exvideo_core.types import ExVideoError


def read(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    frames = [torch.frombuffer(bytearray(frame), dtype=torch.uint8).view(height, width, 3) for frame in reader]
    return meta, torch.stack(frames).float() / 255


@pytest.fixture
def frames():
    ramp = torch.linspace(0.1, 0.9, 64).view(1, 1, 64, 1).expand(10, 48, 64, 3).clone()
    ramp[..., 1] = torch.linspace(0.2, 0.8, 10).view(10, 1, 1)
    return ramp


def test_a_video_reads_back(tmp_path, frames):
    path = tmp_path / "a.mp4"
    save_video(frames, path, fps=24, crf=0)
    meta, back = read(path)
    assert (meta["codec"], meta["size"], meta["fps"]) == ("h264", (64, 48), 24)
    assert meta["duration"] == pytest.approx(10 / 24, abs=0.01)
    assert len(back) == 10
    assert (back - frames).abs().max() < 6 / 255  # sharper than the colour of 2×2 pixels can follow
    assert list(tmp_path.iterdir()) == [path]


def test_colours_come_back(tmp_path):
    levels = torch.tensor([0, 0.5, 1])
    colours = torch.cartesian_prod(levels, levels, levels)
    chart = colours.view(1, 3, 9, 3).repeat_interleave(16, 1).repeat_interleave(16, 2)
    save_video(chart, tmp_path / "a.mp4", fps=30, crf=0)
    _, back = read(tmp_path / "a.mp4")
    assert ((back - chart)[:, 8::16, 8::16] * 255).abs().max() <= 2.5


def test_ntsc_rates_are_kept(tmp_path, frames):
    path = tmp_path / "a.mp4"
    save_video(frames, path, fps=30000 / 1001)
    assert read(path)[0]["fps"] == pytest.approx(29.97)


def test_the_graph_travels_in_the_file_front(tmp_path, frames):
    path = tmp_path / "a.mp4"
    graph = json.dumps({"1": {"text": "a = b; c # d \\ \n ü 猫", "list": list(range(50_000))}})
    save_video(frames, path, fps=30, metadata={"prompt": graph, "workflow": "{}"})
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["prompt"]) == json.loads(graph)
        assert container.metadata["workflow"] == "{}"


@pytest.mark.parametrize("shape", [(3, 49, 63, 3), (1, 48, 64, 3), (2, 48, 64, 1), (2, 48, 64, 4)])
def test_odd_sizes_single_frames_grey_and_rgba(tmp_path, shape):
    path = tmp_path / "a.mp4"
    save_video(torch.full(shape, 0.5), path, fps=30, crf=0)
    meta, back = read(path)
    assert meta["size"] == (64, 50 if shape[1] == 49 else 48)
    assert len(back) == shape[0]
    assert (back - 0.5).abs().max() < 4 / 255


def test_values_out_of_range_are_clipped(tmp_path):
    path = tmp_path / "a.mp4"
    frames = torch.full((1, 16, 16, 3), float("nan"))
    frames[:, :, 8:] = 7.0
    save_video(frames, path, fps=30, crf=0)
    _, back = read(path)
    assert back[:, :, :6].max() < 0.05
    assert back[:, :, 10:].min() > 0.95


def test_sound_is_cut_to_the_video(tmp_path, frames):
    path = tmp_path / "a.mp4"
    sound = torch.sin(torch.arange(44100) / 20).repeat(2, 1)
    save_video(frames, path, fps=20, audio=Audio(sound, 44100))
    meta, back = read(path)
    assert meta["audio_codec"] == "aac"
    assert len(back) == 10
    assert meta["duration"] == pytest.approx(0.5, abs=0.06)


def test_stopping_leaves_nothing(tmp_path, frames):
    def stop(frame):
        if frame == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_video(frames, tmp_path / "a.mp4", fps=30, on_frame=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_encoder_says_why_and_leaves_nothing(tmp_path, frames, monkeypatch):
    broken = export.FORMATS["mp4-h264"]._replace(encoder=("-c:v", "no_such_encoder"))
    monkeypatch.setitem(export.FORMATS, "mp4-h264", broken)
    with pytest.raises(ExVideoError, match="no_such_encoder"):
        save_video(frames.repeat(40, 1, 1, 1), tmp_path / "a.mp4", fps=30)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_survives_a_failure(tmp_path, frames):
    path = tmp_path / "a.mp4"
    path.write_text("before")
    with pytest.raises(ExVideoError, match="fps = 0"):
        save_video(frames, path, fps=0)
    with pytest.raises(ExVideoError, match="no frames"):
        save_video(frames[:0], path, fps=30)
    assert path.read_text() == "before"
