"""How files are saved: their names, what is written into them, and what may go wrong."""

import json
import logging
import time

import folder_paths
import imageio_ffmpeg
import pytest
import torch
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.types import ExVideoError
from PIL import Image


@pytest.fixture(autouse=True)
def output(monkeypatch, tmp_path):
    """The host's output folder, and its temporary one beside it."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


def test_a_subfolder_that_cannot_be_made_is_told_as_such(output):
    (output / "video").touch()
    with (
        pytest.raises(ExVideoError, match=r"Nothing can be saved in .*output .*video.*: make it writable"),
        host.output_file("video/clips/ExVideo", ".mp4"),
    ):
        pass


def half(path):
    path.write_bytes(b"half")
    raise ExVideoError("the disk is full")


def cancelled(path):
    path.write_bytes(b"half")
    raise KeyboardInterrupt


def test_a_half_preview_is_told_and_removed(output, caplog):
    with host.output_file("clip", ".gif") as to:
        to.partial.touch()
    with caplog.at_level(logging.WARNING):
        assert host.preview_file(to, half) is None
    assert "saved clip_00001_.gif, but could not make a preview of it for the node: the disk is full" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        host.preview_file(to, cancelled)
    assert list((output.parent / "temp").iterdir()) == []


def test_what_has_no_preview_is_saved_and_shown_itself(nodes, output, caplog):
    (output.parent / "temp").touch()
    shown = saved(nodes, format="gif")
    assert [picture["filename"] for picture in shown["images"]] == ["clip_00001_.gif"]
    assert [path.name for path in output.iterdir()] == ["clip_00001_.gif"]
    assert "could not make a preview" in caplog.text


def test_sound_of_no_video_is_none(nodes, output):
    sound = {"waveform": torch.zeros(0, 2, 44100), "sample_rate": 44100}
    (shown,) = saved(nodes, format="mp4-h264", audio=sound)["images"]
    assert (output / shown["filename"]).exists()


@pytest.mark.parametrize("fps", [float("nan"), 0.0, -5.0, float("inf")])
def test_interpolating_refuses_frame_rates_that_no_video_has(run, fps):
    with pytest.raises(ExVideoError, match=f"got fps = {fps}"):
        run("ExVideoInterpolate", images=torch.rand(2, 32, 32, 3), fps=fps)


def saved(nodes, **inputs):
    """What Save shows of a short clip."""
    from comfy_api.latest import io

    clip = {"images": torch.rand(2, 32, 32, 3), "fps": 30.0, "filename_prefix": "clip", "crf": 19}
    node = nodes["ExVideoSave"]
    node.hidden = io.HiddenHolder.from_dict(None)
    ui = node.execute(**{**clip, **inputs}).ui
    return ui if isinstance(ui, dict) else ui.as_dict()


def test_the_graph_is_not_told_where_the_user_has_it_so(monkeypatch):
    prompt = {"1": {"class_type": "A", "inputs": {"seed": 7}}}
    assert set(host.graph_metadata(prompt, {"workflow": {}})) == {"prompt", "workflow"}
    monkeypatch.setattr(host.files.host_arguments, "disable_metadata", True)
    assert host.graph_metadata(prompt, {"workflow": {}}) == {}


def test_files_of_one_name_in_two_subfolders_have_a_preview_each(output):
    previews = []
    for number, folder in enumerate(("one", "two")):
        with host.output_file(f"{folder}/clip", ".gif") as to:
            to.partial.touch()
        previews.append(host.preview_file(to, lambda path, number=number: path.write_text(str(number))))
    assert [preview.read_text() for preview in previews] == ["0", "1"]


@pytest.mark.parametrize("crf", [-1, 52])
def test_a_quality_that_there_is_not_is_refused(nodes, output, crf):
    with pytest.raises(ExVideoError, match=f"got crf = {crf}"):
        saved(nodes, format="mp4-h264", crf=crf)
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("node", ["ExVideoSave", "ExVideoRender"])
def test_sound_goes_into_the_file(run, loaded, output, node):
    frames = {"images": torch.rand(5, 64, 64, 3)}
    latents = {"samples": {"samples": torch.zeros(5, 4, 8, 8)}, "vae": loaded[2]}
    sound = {"waveform": torch.sin(torch.arange(48000) / 20).view(1, 1, -1), "sample_rate": 48000}
    given = frames if node == "ExVideoSave" else latents
    run(node, **given, fps=10.0, audio=sound, filename_prefix="heard")
    meta = next(imageio_ffmpeg.read_frames(str(output / "heard_00001_.mp4")))
    assert meta["audio_codec"].startswith("aac")
    assert meta["duration"] == pytest.approx(0.5, abs=0.06)


def test_a_stream_of_a_loop_is_frame_for_frame_what_three_nodes_make(run, loaded, output):
    samples = {"samples": torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(2))}
    decoding = {"samples": samples, "vae": loaded[2], "window": 4, "overlap": 2, "loop": True}
    (frames,) = run("ExVideoDecode", **decoding)
    between, _ = run("ExVideoInterpolate", images=frames, multiplier=2, loop=True)
    run("ExVideoSave", images=between, format="png", filename_prefix="apart")
    run("ExVideoRender", **decoding, multiplier=2, format="png", filename_prefix="stream")
    apart, stream = (sorted(output.glob(f"{name}*/*.png")) for name in ("apart", "stream"))
    assert len(apart) == len(stream) == 12
    assert all(Image.open(a).tobytes() == Image.open(b).tobytes() for a, b in zip(apart, stream, strict=True))


def test_latents_of_long_clips_are_kept(run, loaded, output):
    for frames in (200, 201):
        samples = {"samples": torch.zeros(frames, 4, 1, 1)}
        run("ExVideoRender", samples=samples, vae=loaded[2], window=128, overlap=0, filename_prefix=f"of {frames}")
    assert [path.name for path in output.glob("*.latent")] == ["of 201_00001_.latent"]


def test_what_a_file_says_of_its_graph_is_strict_json():
    """The host writes NaN into it where a node is to run each time, and the page reads none of it then."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    prompt = {"1": {"class_type": "Any", "inputs": {"a": 0.5}, "is_changed": [float("nan"), float("-inf"), "é"]}}
    texts = host.graph_metadata(prompt, {"workflow": {"nodes": []}})
    assert json.loads(texts["prompt"], parse_constant=refuse)["1"]["is_changed"] == [None, None, "é"]
    assert json.loads(texts["workflow"]) == {"nodes": []}


def test_a_files_name_may_hold_the_time(monkeypatch, output):
    monkeypatch.setattr("time.localtime", lambda: time.struct_time((2031, 4, 5, 16, 7, 8, 5, 95, 0)))
    for number in (1, 2):
        with host.output_file("%date:yyyy-MM%/%date:dd% at %date:h.mm.ss, yy/M/d% %year% %width%", ".mp4", 64) as to:
            to.partial.touch()
        assert (output / "2031-04" / "05 at 16.07.08, 31" / "4" / f"5 2031 64_0000{number}_.mp4").exists()
