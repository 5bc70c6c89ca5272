"""Names that one of many writers takes, and files that are there whole or not at all."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from exvideo_core.files import checksum, claimed, save_tensors, whole_or_nothing
from exvideo_core.types import ExVideoError

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_a_name_appears_when_all_is_written(tmp_path):
    with claimed(tmp_path / "sub", "video", 3, ".mp4") as claim:
        assert claim.path == tmp_path / "sub" / "video_00003_.mp4"
        claim.partial.write_text("half")
        assert not claim.path.exists()
        claim.partial.write_text("whole")
    assert claim.path.read_text() == "whole"
    assert names(tmp_path / "sub") == ["video_00003_.mp4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("suffix", [".mp4", ""])
def test_a_failure_leaves_nothing(tmp_path, error, suffix):
    def write():
        with claimed(tmp_path, "video", 1, suffix) as claim:
            (claim.partial if suffix else claim.partial / "frame.png").write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == []


def test_a_folder_of_pictures_appears_whole(tmp_path):
    with claimed(tmp_path, "a.b", 1, "") as claim:
        (claim.partial / "frame_1.png").write_text("1")
    assert names(tmp_path) == ["a.b_00001_", "frame_1.png"]


def test_taken_names_are_passed_over(tmp_path):
    (tmp_path / "video_00001_.mp4").write_text("before")
    with claimed(tmp_path, "video", 1, ".mp4") as first, claimed(tmp_path, "video", 1, ".mp4") as second:
        first.partial.write_text("first")
        second.partial.write_text("second")
    texts = [(tmp_path / f"video_0000{n}_.mp4").read_text() for n in (1, 2, 3)]
    assert texts == ["before", "first", "second"]


def writer(folder, code, *arguments):
    """A process that runs code after claiming a name in a folder."""
    begin = "import sys, time, pathlib; sys.path.insert(0, sys.argv[1]); from exvideo_core.files import *\n"
    command = [sys.executable, "-c", begin + code, str(ROOT), str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_many_processes_never_take_one_name(tmp_path):
    code = (
        "for n in range(20):\n"
        "    with claimed(pathlib.Path(sys.argv[2]), 'video', 1, '.mp4') as claim:\n"
        "        claim.partial.write_text(f'{sys.argv[3]} {n}')\n"
    )
    for child in [writer(tmp_path, code, str(number)) for number in range(3)]:
        assert child.wait(timeout=100) == 0
    assert names(tmp_path) == [f"video_{n:05}_.mp4" for n in range(1, 61)]
    assert len({path.read_text() for path in tmp_path.iterdir()}) == 60


def test_processes_of_one_number_do_not_meet(tmp_path):
    """As in two containers that share a folder, where a program often has the number 1."""
    code = (
        "os.getpid = lambda: 1\n"
        "for n in range(100):\n"
        "    with whole_or_nothing(pathlib.Path(sys.argv[2], 'clip')) as partial:\n"
        "        partial.write_text(sys.argv[3])\n"
        "        time.sleep(0.01)\n"
    )
    for child in [writer(tmp_path, code, str(number)) for number in range(3)]:
        assert child.wait(timeout=100) == 0
    assert names(tmp_path) == ["clip"]


def test_a_killed_process_leaves_no_file_under_the_name(tmp_path):
    code = (
        "with claimed(pathlib.Path(sys.argv[2]), 'video', 1, '.mp4') as claim:\n"
        "    claim.partial.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    child = writer(tmp_path, code)
    assert child.stdout.readline() == b"writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not list(tmp_path.glob("video*"))
    with claimed(tmp_path, "video", 1, ".mp4") as claim:
        claim.partial.write_text("whole")
    assert [path.name for path in tmp_path.glob("video*")] == ["video_00002_.mp4"]


KILLED = {
    "a video": "claimed(pathlib.Path(sys.argv[2]), 'video', 1, '.mp4') as (_, partial)",
    "pictures": "claimed(pathlib.Path(sys.argv[2]), 'video', 1, '') as (_, partial)",
    "an extension": "whole_or_nothing(pathlib.Path(sys.argv[2], 'extension.safetensors')) as partial",
}
"""What killed processes were writing."""


@pytest.mark.parametrize("what", KILLED)
def test_what_a_killed_process_left_goes_after_a_day(tmp_path, what):
    """Whoever writes in its folder then removes it, and nothing else."""
    for mine in (".mine.part", "video_00007_.mp4.part", ".video_00008_.mp4"):
        (tmp_path / mine).touch()
        os.utime(tmp_path / mine, (0, 0))
    before = names(tmp_path)
    child = writer(
        tmp_path,
        f"with {KILLED[what]}:\n"
        "    (partial / 'frame.png' if partial.is_dir() else partial).write_text('half')\n"
        "    print('writing', flush=True); time.sleep(60)\n",
    )
    assert child.stdout.readline() == b"writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    (left,) = (path for path in tmp_path.iterdir() if path.name not in before)
    for hours, stays in ((23, True), (25, False)):
        then = time.time() - hours * 3600
        os.utime(left, (then, then))
        if what == "an extension":
            with claimed(tmp_path, "picture", 1, ".png"):
                assert left.exists() == stays
        else:
            save_tensors(tmp_path / "other.safetensors", {"a": torch.ones(2)}, {})
        assert left.exists() == stays
    assert not {*before} - {*names(tmp_path)}


def test_what_is_being_written_is_called_as_no_model(tmp_path):
    with claimed(tmp_path, "video", 1, ".safetensors"), whole_or_nothing(tmp_path / "extension.safetensors") as partial:
        partial.touch()
        assert [path.suffix for path in tmp_path.iterdir()] == [".part"] * 2
        assert all(path.name.startswith(".") for path in tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".mp4", ""])
def test_what_is_whole_is_not_lost_where_it_cannot_have_its_name(tmp_path, suffix):
    """Here, since a folder of that name has come between."""

    def write():
        with claimed(tmp_path, "video", 1, suffix) as claim:
            (claim.partial if suffix else claim.partial / "frame.png").write_text("whole")
            (claim.path / "other").mkdir(parents=True)

    with pytest.raises(
        ExVideoError, match=rf"^video_00001_{suffix} is whole, but .*: rename it within a day"
    ) as raised:
        write()
    (kept,) = re.findall(r"It is (.*): rename", str(raised.value))
    assert (Path(kept) if suffix else Path(kept, "frame.png")).read_text() == "whole"


def test_a_name_that_is_held_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    """As Windows has it, while another program looks at what is new."""
    real, refused = Path.replace, [PermissionError(), PermissionError()]

    def replace(path, to):
        if refused:
            raise refused.pop()
        return real(path, to)

    monkeypatch.setattr(Path, "replace", replace)
    with claimed(tmp_path, "video", 1, "") as claim:
        (claim.partial / "frame.png").touch()
    refused += [PermissionError(), PermissionError()]
    save_tensors(tmp_path / "some.safetensors", {"a": torch.ones(2)}, {})
    assert names(tmp_path) == ["frame.png", "some.safetensors", "video_00001_"]


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExVideoError, match="Nothing can be saved in"), claimed(tmp_path / "file", "a", 1, ".mp4"):
        pass


def test_tensors_may_be_read_by_whoever_may_read_other_files(tmp_path):
    (tmp_path / "other").touch()
    save_tensors(tmp_path / "new" / "some.safetensors", {"a": torch.ones(2)}, {})
    assert (tmp_path / "new" / "some.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_checksum_is_of_the_bytes_of_any_numbers():
    values = torch.arange(24.0).reshape(2, 3, 4)
    assert checksum(values) == hashlib.sha256(values.numpy().tobytes()).hexdigest()
    assert checksum(values.mT) == hashlib.sha256(values.mT.numpy().tobytes()).hexdigest()
    assert checksum(values.bfloat16()) == checksum(values.bfloat16().view(torch.int16)) != checksum(values)
    for small in (torch.tensor(1.0), torch.zeros(0, 3)):
        assert checksum(small) == hashlib.sha256(small.numpy().tobytes()).hexdigest()
