"""The programs as in the portable Windows build, whose isolated Python finds ComfyUI's folder, not the current one."""

import os
import subprocess
import sys

import pytest

from dev.environment import ROOT
from dev.inside import host_path
from dev.videos import draw_video
from exvideo_core.tiny import CHECKPOINT, write_tiny_model
from tests.server.test_batch import draw, words

START = """
import runpy, sys
folder, name = sys.argv.pop(1), sys.argv.pop(1)
sys.path.insert(0, folder)
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def run(tmp_path):
    """Start a program of the pack as `python.exe -m custom_nodes.exvideo.…` does there; returns what it says."""
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    (tmp_path / "ComfyUI" / "custom_nodes" / "exvideo").symlink_to(ROOT)

    def start(name, *arguments):
        module = f"custom_nodes.exvideo.exvideo_core.{name}"
        command = [sys.executable, "-I", "-c", START, tmp_path / "ComfyUI", module, *arguments]
        # An isolated Python does not read PYTHONPATH. Those that Ray starts do: there, ComfyUI is on the path of all.
        env = {**os.environ, "COMFYUI_PATH": str(host_path()), "PYTHONPATH": str(tmp_path / "ComfyUI")}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return start


def test_the_doctor(run, tmp_path):
    write_tiny_model(tmp_path / "models")
    assert "Nothing is wrong." in run("doctor", "--", "--cpu", f"--base-directory={tmp_path}")


def test_the_batch_on_many_servers(run, server, tmp_path):
    """Ray's workers find the pack, too; a name and password that a server is given are not told."""
    for number in range(2):
        draw(tmp_path / "pictures" / f"{number}.png", (7, number, 91))
    urls = [server.url, server.url.replace("127.0.0.1", "me:sesame@localhost")]
    said = run("batch", *words(tmp_path / "pictures", url=urls, output=tmp_path / "videos"))
    assert "2 done, 0 failed" in said
    assert " on http://localhost:" in said
    assert "sesame" not in said


def test_post_tuning_tells_what_it_does(run, tmp_path):
    write_tiny_model(tmp_path)
    draw_video(tmp_path / "videos" / "one.mp4", source="testsrc=size=64x64:rate=30", seconds=0.3)
    said = run(
        "post_tuning", f"--checkpoint={tmp_path / CHECKPOINT}", f"--videos={tmp_path / 'videos'}", "--frames=6",
        "--size=64x64", "--steps=1", f"--output={tmp_path / 'run'}", "--", "--cpu",
    )  # fmt: skip
    assert "step 1 of 1" in said
    assert "ExVideo learns from 1 clips of 6 frames" in said
