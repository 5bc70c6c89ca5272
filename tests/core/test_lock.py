"""One process to a folder at a time."""

import errno
import os
import subprocess
import sys

import pytest

from dev.environment import ROOT
from exvideo_core import lock
from exvideo_core.lock import locked
from exvideo_core.types import ExVideoError

HOLDING = """
import sys, time
from pathlib import Path
from exvideo_core.lock import locked
with locked(Path(sys.argv[1]), "It is taken."):
    print("locked", flush=True)
    time.sleep(100)
"""


def test_a_second_process_is_refused_until_the_first_has_ended_or_was_killed(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDING, folder], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline().strip() == b"locked"
        with pytest.raises(ExVideoError, match="It is taken"), locked(folder, "It is taken."):
            pass
        with locked(tmp_path / "another", ""):
            pass
        other.kill()
    with locked(folder, ""), pytest.raises(ExVideoError, match="taken"), locked(folder, "It is taken."):
        pass
    with locked(folder, ""):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="there files are locked in another way")
def test_where_files_cannot_be_locked_nobody_is_refused(tmp_path, monkeypatch):
    """As on a network drive; or where the lock is a file of another user."""

    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / "b" / ".lock").mkdir(parents=True)
    with locked(tmp_path / "b", ""), locked(tmp_path / "b", ""):
        pass
    monkeypatch.setattr("fcntl.flock", unsupported)
    with locked(tmp_path / "a", ""), locked(tmp_path / "a", ""):
        pass


def test_nothing_is_left_and_what_was_there_stays(tmp_path):
    with locked(tmp_path / "a" / "new", ""):
        assert (tmp_path / "a" / "new" / ".lock").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyError), locked(tmp_path / "empty", ""):
        raise KeyError
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a", tmp_path / "empty"]
    assert not [*(tmp_path / "a").iterdir(), *(tmp_path / "empty").iterdir()]


@pytest.mark.skipif(sys.platform == "win32", reason="there it is not removed")
def test_a_lock_that_was_removed_meanwhile_keeps_nobody_out(tmp_path, monkeypatch):
    """The other process was about to end when this one opened its lock."""
    opened = lock._opened

    def first_an_old_one(path):
        monkeypatch.setattr(lock, "_opened", opened)
        file = opened(path)
        path.unlink()
        return file

    monkeypatch.setattr(lock, "_opened", first_an_old_one)
    with locked(tmp_path, ""), pytest.raises(ExVideoError, match="taken"), locked(tmp_path, "It is taken."):
        pass
