"""The demo as a person runs it: one command, one file, nothing left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import psutil
import pytest

from dev.environment import ROOT, is_active

pytestmark = pytest.mark.skipif(not is_active(), reason="the demo makes an environment: run by `make test`")


def start(*arguments, **options):
    command = [sys.executable, "-m", "dev.demo", "--size=64", "--steps=1", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def servers():
    """ComfyUI processes on the demo's folder."""
    base = str(ROOT / ".host" / "demo")
    found = []
    for process in psutil.process_iter():
        try:
            if "main.py" in process.cmdline() and base in process.cmdline():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_one_command_one_video(tmp_path):
    out = tmp_path / "videos" / "mine.mp4"
    process = start("--frames=5", f"--out={out}")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert Path(printed.splitlines()[-1]) == out
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    assert servers() == []


@pytest.mark.skipif(os.name == "nt", reason="Windows delivers Ctrl-C to a console, not to a process")
def test_ctrl_c_leaves_nothing(tmp_path):
    out = tmp_path / "mine.mp4"
    # In the background of a script, as CI may be, programs are born deaf to Ctrl-C; a person's terminal is meant here.
    process = start(
        "--frames=128",
        f"--out={out}",
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not servers() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert servers()
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert servers() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--frames=0"], 2, "frames should be a whole number of at least 1"),
        (["--image=no_such_picture.png"], 1, "no such file"),
        ([f"--image={ROOT / 'README.md'}"], 1, "README.md"),
    ],
)
def test_a_wrong_call_ends_in_a_sentence(tmp_path, arguments, status, told):
    process = start(*arguments, f"--out={tmp_path / 'mine.mp4'}")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status
    assert told in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
