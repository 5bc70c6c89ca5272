"""The doctor as people meet it: the node through /prompt, and the program."""

import os
import subprocess
import sys

import pytest

from dev.environment import ROOT
from dev.inside import host_path
from exvideo_core.tiny import EXTENSION, write_tiny_model

PROMPT = {"1": {"class_type": "ExVideoDoctor", "inputs": {}}}


def test_the_node_shows_its_report_and_runs_again(client, server):
    for bad in (False, True):
        if bad:
            (server.base / "models" / "exvideo" / "cut.safetensors").write_bytes(b"\x99" * 100)
        prompt_id = client.queue(PROMPT)
        client.follow(prompt_id, lambda kind, data: None)
        (text,) = client.history(prompt_id)["outputs"]["1"]["text"]
        assert f"belong in {server.base / 'models' / 'checkpoints'}" in text
        assert "exvideo_tiny_128f.safetensors extends to 128 frames, and fits exvideo_tiny_svd.safetensors" in text
        assert text.endswith("1 wrong; each fix is above." if bad else "Nothing is wrong.")
    (server.base / "models" / "exvideo" / "cut.safetensors").unlink()


@pytest.fixture
def base(tmp_path):
    write_tiny_model(tmp_path / "models")
    return tmp_path


def run(*arguments, **env):
    command = [sys.executable, "-m", "exvideo_core.doctor", *arguments]
    env = {**os.environ, "COMFYUI_PATH": str(host_path()), **env}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout


def test_the_program_finds_nothing_wrong(base):
    status, said = run("--", "--cpu", "--base-directory", str(base))
    assert (status, said.splitlines()[-1]) == (0, "Nothing is wrong.")
    assert f"SVD checkpoints belong in {base / 'models' / 'checkpoints'}" in said


def test_the_program_finds_what_is_wrong(base):
    """A file cut short and an ffmpeg that is not there; models from another folder, named as for ComfyUI."""
    whole = (base / "models" / EXTENSION).read_bytes()
    (base / "models" / EXTENSION).write_bytes(whole[: len(whole) // 2])
    paths = base / "more.yaml"
    paths.write_text(f"more:\n  base_path: {base / 'models'}\n  exvideo: exvideo\n  checkpoints: checkpoints\n")
    empty = base / "empty"
    empty.mkdir()
    arguments = ("--cpu", "--base-directory", str(empty), "--extra-model-paths-config", str(paths))
    status, said = run("--", *arguments, IMAGEIO_FFMPEG_EXE=str(base / "no ffmpeg"))
    assert status == 1
    assert "exvideo_tiny_svd.safetensors is SVD" in said
    assert "exvideo_tiny_128f.safetensors should be a .safetensors file, but it is damaged" in said
    assert "does not run" in said
    assert said.count("fix: ") >= 3


def test_without_a_comfyui_the_program_says_how_to_find_one(tmp_path):
    status, said = run(COMFYUI_PATH=str(tmp_path))
    assert status == 1
    assert "wrong  No ComfyUI was found\n       fix: Put this pack into its custom_nodes folder" in said
