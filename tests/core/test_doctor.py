"""The doctor's checks that need no ComfyUI, on real files."""

import re
import subprocess
import sys
from math import prod

import pytest
import torch
from safetensors.torch import load_file, save_file

from exvideo_core import formats
from exvideo_core.budget import plan_pass
from exvideo_core.doctor.checks import check_flow, check_formats, check_memory, check_models, extended_parameters
from exvideo_core.doctor.findings import PACKAGES, Finding, check_packages, guarded, is_wrong, of_error, report
from exvideo_core.extension import TABLE, write_extension
from exvideo_core.svd import SVDLayout, UNetLayout
from exvideo_core.tiny import CHECKPOINT, EXTENSION, LAYOUT, draw_checkpoint, draw_extension, write_tiny_model
from exvideo_core.types import ExVideoError

GIB = 2**30


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder)
    return folder


@pytest.fixture
def look(models):
    """What is found of the tiny model, with other files beside or instead."""

    def check(checkpoints=None, extensions=None):
        checkpoints = {"svd.safetensors": models / CHECKPOINT} if checkpoints is None else checkpoints
        extensions = {"exvideo.safetensors": models / EXTENSION} if extensions is None else extensions
        return list(check_models(checkpoints, extensions))

    return check


@pytest.fixture
def fresh_ffmpeg():
    """What ffmpeg can do is asked again, before and after."""
    formats._encoders.cache_clear()
    yield
    formats._encoders.cache_clear()


def one(findings, state):
    """The only finding of a state; it says what to do."""
    (found,) = (finding for finding in findings if finding.state == state)
    assert re.fullmatch(r"[A-Z][^\n]+\.", found.fix)
    return found


def test_a_pair_that_fits(look):
    assert look() == [
        Finding("svd.safetensors is SVD, 32 channels wide"),
        Finding("exvideo.safetensors extends to 128 frames, and fits svd.safetensors"),
    ]


def test_an_extension_whose_names_have_a_common_beginning(look, models, tmp_path):
    path = tmp_path / "module.safetensors"
    save_file({f"module.{key}": tensor for key, tensor in load_file(models / EXTENSION).items()}, path)
    assert look(extensions={"exvideo.safetensors": path}) == look()


def test_weights_are_not_read(look, models, tmp_path):
    """Numbers that a loader refuses: the header alone does not show them."""
    tensors = load_file(models / EXTENSION)
    tensors[f"blocks.7.{TABLE}"] = tensors[f"blocks.7.{TABLE}"] * torch.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    assert not is_wrong(look(extensions={"nan.safetensors": tmp_path / "nan.safetensors"}))


def test_no_models(look):
    svd, extension = look({}, {})
    assert svd.state == extension.state == "wrong"
    assert "svd_xt.safetensors" in svd.fix
    assert "model.fp16.safetensors" in extension.fix


@pytest.mark.parametrize("kind", ["checkpoints", "extensions"])
@pytest.mark.parametrize("content", ["cut short", "page", "nothing"])
def test_a_damaged_file(look, models, tmp_path, kind, content):
    whole = models / {"checkpoints": CHECKPOINT, "extensions": EXTENSION}[kind]
    path = tmp_path / "bad.safetensors"
    path.write_bytes({"cut short": whole.read_bytes()[:-1000], "page": b"<html>", "nothing": b""}[content])
    found = one(look(**{kind: {"good.safetensors": whole, "bad.safetensors": path}}), "wrong")
    assert found.what.startswith("bad.safetensors should be a .safetensors file, but it is ")
    assert found.fix == "Download it again, or remove it."


def test_a_relative_of_svd(look, models, tmp_path):
    """SV3D has the tensors of SVD, and another embedding."""
    tensors = load_file(models / CHECKPOINT)
    key = "model.diffusion_model.label_emb.0.0.weight"
    save_file({**tensors, key: tensors[key][:, :256].contiguous()}, tmp_path / "sv3d.safetensors")
    files = {"svd.safetensors": models / CHECKPOINT, "sv3d.safetensors": tmp_path / "sv3d.safetensors"}
    findings = look(files)
    assert "sv3d.safetensors" in one(findings, "warn").what
    assert not is_wrong(findings)
    del files["svd.safetensors"]
    assert one(look(files), "wrong").what == "There is no SVD checkpoint"


def test_checkpoints_of_other_models_are_passed_over(look, models, tmp_path):
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4)}, tmp_path / "sd.safetensors")
    files = {"svd.safetensors": models / CHECKPOINT, "sd.safetensors": tmp_path / "sd.safetensors"}
    assert look(files) == look()


def test_an_extension_that_does_not_fit(look, models, tmp_path):
    layout = SVDLayout(UNetLayout(channels=64, context=64), LAYOUT.vae, LAYOUT.clip)
    write_extension(draw_extension(draw_checkpoint(layout), 30), tmp_path / "wide.safetensors")
    files = {"exvideo.safetensors": models / EXTENSION, "wide.safetensors": tmp_path / "wide.safetensors"}
    found = one(look(extensions=files), "wrong")
    assert found.what.startswith("wide.safetensors does not fit the model: ")
    assert found.fix.startswith("Use the base it was trained on")


def test_extensions_of_other_kinds(look, models, tmp_path):
    tensors = load_file(models / EXTENSION)
    del tensors[f"blocks.195.{TABLE}"]
    files = {"exvideo.safetensors": models / EXTENSION}
    for name, content in {"part": tensors, "lora": {"lora_up.weight": torch.zeros(4)}}.items():
        files[f"{name}.safetensors"] = tmp_path / f"{name}.safetensors"
        save_file(content, files[f"{name}.safetensors"])
    findings = look(extensions=files)
    assert f"blocks.195.{TABLE} is missing" in one(findings, "wrong").what
    assert "but it is a LoRA" in one(findings, "warn").what


def test_an_extension_among_the_checkpoints(look, models):
    found = one(look(checkpoints={"mislaid.safetensors": models / EXTENSION}, extensions={}), "warn")
    assert found.what == "mislaid.safetensors is an ExVideo extension among the checkpoints"
    assert found.fix == "Move it into models/exvideo."


def test_formats():
    (found,) = check_formats()
    assert found.state == "ok"
    assert formats.ffmpeg() in found.what
    assert all(name in found.what for name in formats.FORMATS)


@pytest.mark.skipif(sys.platform == "win32", reason="takes a shell script for an ffmpeg")
@pytest.mark.parametrize(
    ("script", "state", "what"),
    [
        (None, "wrong", "ffmpeg, and it does not run"),
        ("echo ' V..... libx264'; echo ' V..... gif'", "warn", "cannot make mp4-h265-10bit, mp4-av1"),
        ("true", "wrong", "cannot make mp4-h264"),
    ],
)
def test_an_ffmpeg_that_lacks_something(fresh_ffmpeg, monkeypatch, tmp_path, script, state, what):
    path = tmp_path / "ffmpeg"
    if script is not None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    found = one(check_formats(), state)
    assert what in found.what
    assert "IMAGEIO_FFMPEG_EXE" in found.fix


def test_memory_is_told_by_the_plan_of_a_pass():
    def needed(setting, clip):
        return plan_pass(setting, 320 * clip.frames * clip.height * clip.width * 2, 2 * GIB).needed

    free, first, second, _ = check_memory("a device", 2 * GIB, needed)
    assert free == Finding("2.0 GiB are free on a device, beside the weights of SVD and ExVideo")
    assert "At 512×512" in first.what
    assert "128 with low" in first.what
    assert first.state == "ok"
    frames = int(re.search(r"(\d+) with low", second.what)[1])
    row = 320 * 72 * 128 * 2
    assert (
        plan_pass("low", row * frames, 2 * GIB).needed <= 2 * GIB < plan_pass("low", row * (frames + 1), 2 * GIB).needed
    )


def test_too_little_memory_is_told():
    found = one(check_memory("a device", GIB, lambda setting, clip: prod(clip) * 2**12), "warn")
    assert "At 512×512" in found.what
    assert "0 with" not in found.what


def test_a_size_of_which_nothing_fits_is_no_ok():
    found = list(check_memory("a device", GIB, lambda setting, clip: prod(clip) // clip[0] * 2**15))
    assert [each.state for each in found] == ["ok", "ok", "warn", "warn"]
    assert "0 with low" in found[2].what


def test_parameters_are_those_of_the_release():
    # 3.47 GiB in half precision, as the authors' model takes.
    assert extended_parameters() * 2 / GIB == pytest.approx(3.47, abs=0.01)


def test_the_flow_that_is_used():
    (found,) = check_flow()
    assert re.search("by (OpenCV's|the pack's own) optical flow", found.what)


def test_packages_are_those_of_the_requirements(request):
    lines = (request.config.rootpath / "requirements.txt").read_text().splitlines()
    required = [re.split("[>=]", line)[0] for line in lines if line and not line.startswith("#")]
    assert sorted(PACKAGES) == sorted(["torch", *required])
    assert [found.state for found in check_packages()] == ["ok", "ok"]


def test_a_missing_package_is_a_finding(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    found = one(check_packages(), "wrong")
    assert "kornia cannot be imported" in found.what
    assert "requirements.txt" in found.fix


def test_a_check_that_fails_is_a_finding():
    def check():
        yield Finding("something")
        raise OSError("no such device")

    something, failed = guarded("The device", check)
    assert something == Finding("something")
    assert failed.what == "The device could not be looked at: OSError, no such device"
    assert failed.state == "wrong"


@pytest.mark.parametrize(
    ("error", "what", "fix"),
    [
        ("It is cut (at: 7). Download it again.", "It is cut (at: 7)", "Download it again."),
        ("There is none: make one.", "There is none", "Make one."),
    ],
)
def test_what_errors_advise_is_the_fix(error, what, fix):
    assert of_error(ExVideoError(error)) == Finding(what, "wrong", fix)


def test_the_report():
    findings = [Finding("One"), Finding("Two", "wrong", "Do it.")]
    assert report(findings) == "ok     One\nwrong  Two\n       fix: Do it.\n\n1 wrong; each fix is above."
    assert report(findings[:1]).endswith("Nothing is wrong.")


def test_without_any_package_the_program_still_tells(request):
    """On a bare Python: no traceback, but what to do."""
    command = [sys.executable, "-S", "-m", "exvideo_core.doctor"]
    done = subprocess.run(command, cwd=request.config.rootpath, capture_output=True, text=True)
    assert done.returncode == 1
    assert not done.stderr
    assert "wrong  The package torch cannot be imported" in done.stdout
    assert "Use the Python that runs ComfyUI" in done.stdout


def test_without_torch_nothing_else_is_told_of_packages(monkeypatch):
    """They would only be installed into the wrong Python."""
    for name in ("torch", "kornia"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "torch cannot be imported" in one(check_packages(), "wrong").what
