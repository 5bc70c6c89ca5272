"""A disk that is full: one clear sentence, nothing half written, and what was there before is still there."""

import pytest

from dev.small_disk import on_small_disk

SCRIPT = """
import json, sys, tempfile
from pathlib import Path
import torch
from dev.inside import become_host, core, node_runner

base = Path(sys.argv[1])
become_host("--cpu", "--base-directory", str(base))
import folder_paths
run, told, disk = node_runner(), {}, base / "output"

def attempt(what, do):
    before = {path: path.stat().st_size for path in disk.rglob("*") if path.is_file()}
    try:
        do()
        said = ""
    except core("types").ExVideoError as error:
        said = str(error)
    after = {path: path.stat().st_size for path in disk.rglob("*") if path.is_file()}
    told[what] = [said, sorted(path.name for path in after if after[path] != before.get(path))]

noise = torch.rand(4, 384, 384, 3)
for kind in ("mp4-h264", "mp4-av1", "webm-vp9", "gif", "png"):
    attempt(kind, lambda: run("ExVideoSave", images=noise, format=kind, crf=0))
# As on most machines, temporary files are on the same disk.
tempfile.tempdir = str(disk)
attempt("all on it", lambda: run("ExVideoSave", images=noise, crf=0))
sound = {"waveform": torch.zeros(1, 1, 200_000), "sample_rate": 8000}
# So slow that all of it is heard.
attempt("sound", lambda: run("ExVideoSave", images=noise, audio=sound, fps=0.1))
tempfile.tempdir = None
tensors = {"tensor": torch.rand(2**20)}
attempt("tensors", lambda: core("files").save_tensors(disk / "run" / "step.safetensors", tensors, {}))
def latents():
    with core("host").output_file("video/ExVideo", ".mp4") as beside:
        core("host").save_latents(torch.rand(64, 4, 64, 64), beside, {}, {})

attempt("latents", latents)

def previews():
    folder_paths.set_output_directory(str(base / "roomy"))
    folder_paths.set_temp_directory(str(disk / "temp"))
    for kind in ("gif", "png", "mp4-h265-10bit", "mov-prores"):
        run("ExVideoSave", images=noise, format=kind)

(disk / "ballast").write_bytes(bytes(300_000))
attempt("previews", previews)
(disk / "ballast").unlink()
told["saved without"] = sorted(path.name for path in (base / "roomy" / "video").iterdir())
folder_paths.set_output_directory(str(disk))
attempt("small", lambda: run("ExVideoSave", images=noise[:2, :64, :64]))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What was attempted on a small disk → the error's text, and files that are new or changed."""
    base = tmp_path_factory.mktemp("full")
    (base / "output").mkdir()
    said = on_small_disk(base / "output", "400k", SCRIPT, str(base))
    if said is None:
        pytest.skip("no small disk can be made here")
    return said


@pytest.mark.parametrize(
    "what", ["mp4-h264", "mp4-av1", "webm-vp9", "gif", "png", "all on it", "sound", "tensors", "latents"]
)
def test_a_full_disk_is_told_and_leaves_nothing(told, what):
    said, files = told[what]
    assert "o space left" in said
    assert files == []


def test_the_message_tells_the_name_that_the_file_would_have_had(told):
    said, _ = told["latents"]
    assert said.startswith("ExVideo_00001_.latent could not be written")


def test_no_room_for_a_preview_costs_nothing_but_the_preview(told):
    assert told["previews"] == ["", []]
    names = ["ExVideo_00001_.gif", "ExVideo_00002_", "ExVideo_00003_.mp4", "ExVideo_00004_.mov"]
    assert told["saved without"] == names


def test_what_fits_is_saved_after_all_that(told):
    said, (name,) = told["small"]
    assert said == ""
    assert name.endswith(".mp4")
