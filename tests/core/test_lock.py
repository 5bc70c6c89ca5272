"""One run to a folder at a time."""

import errno
import os
import subprocess
import sys

import pytest

from dev.environment import ROOT
from exvideo_core.post_tuning.lock import locked
from exvideo_core.types import ExVideoError

HOLDING = """
import sys, time
from pathlib import Path
from exvideo_core.post_tuning.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(100)
"""


def test_a_second_process_is_refused_until_the_first_has_ended_or_was_killed(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDING, folder], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline().strip() == b"locked"
        with pytest.raises(ExVideoError, match=r"^Another post-tuning is running in .*run: wait"), locked(folder):
            pass
        with locked(tmp_path / "another"):
            pass
        other.kill()
    with locked(folder), pytest.raises(ExVideoError, match="Another"), locked(folder):
        pass
    with locked(folder):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="there files are locked in another way")
def test_where_files_cannot_be_locked_nobody_is_refused(tmp_path, monkeypatch):
    """As on a network drive; or where the lock is a file of another user."""

    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / "b" / ".lock").mkdir(parents=True)
    with locked(tmp_path / "b"), locked(tmp_path / "b"):
        pass
    monkeypatch.setattr("fcntl.flock", unsupported)
    with locked(tmp_path / "a"), locked(tmp_path / "a"):
        pass
