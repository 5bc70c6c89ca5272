"""The record of a batch: whose file is whose."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from exvideo_core.batch.manifest import MANIFEST, Manifest, RecordError, find_pictures
from exvideo_core.types import ExVideoError


@pytest.fixture
def output(tmp_path):
    return tmp_path / "videos"


@pytest.fixture
def begin(tmp_path, output):
    """A batch of pictures, as its program starts it: the record, and what is to be done."""

    def start(*names):
        for name in names:
            (tmp_path / name).touch()
        manifest = Manifest(output, "settings")
        return manifest, manifest.to_do(find_pictures([tmp_path / name for name in names]))

    return start


def arrived(output, *suffixes):
    """Files as they come from a server; the content tells one from another."""
    folder = output / ".batch-1"
    folder.mkdir()
    files = [folder / f"{number}{suffix}" for number, suffix in enumerate(suffixes)]
    for file in files:
        file.write_text(f"{file.name} made")
    return files


def done(manifest, item, *suffixes):
    files = manifest.done(item, arrived(manifest.path.parent, *suffixes))
    (manifest.path.parent / ".batch-1").rmdir()
    return files


def test_an_item_replaces_what_was_made_for_it_in_any_format(begin):
    manifest, (item,) = begin("a.png")
    assert done(manifest, item, ".mp4") == ["a.mp4"]
    assert done(manifest, item, ".gif") == ["a.gif"]
    manifest, _ = begin("a.png")
    manifest.failed(item, "out of memory")
    assert done(manifest, item, ".mp4") == ["a.mp4"]


def test_a_folder_on_another_disk_takes_its_files(begin, output):
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == output.parent.stat().st_dev:
        pytest.skip("there is no other disk")
    manifest, (item,) = begin("a.png")
    with tempfile.TemporaryDirectory(dir=elsewhere) as folder:
        (output / "on").mkdir()
        (output / "on" / "another").symlink_to(folder)
        files = done(manifest, item._replace(name="on/another/a"), ".mp4")
        assert files == ["on/another/a.mp4"]
        assert [path.name for path in Path(folder).iterdir()] == ["a.mp4"]
        assert (output / files[0]).read_text() == "0.mp4 made"


def test_a_file_of_somebody_else_stays(begin, output):
    output.mkdir()
    (output / "a.2.png").write_text("mine")
    manifest, (item,) = begin("a.png")
    assert done(manifest, item, ".png", ".png") == ["a_2.png", "a_2.2.png"]
    assert done(manifest, item, ".png", ".png") == ["a_2.png", "a_2.2.png"]
    assert (output / "a.2.png").read_text() == "mine"


def test_a_file_of_another_item_is_not_taken_while_it_is_missing(begin, output):
    manifest, (first, second) = begin("a.png", "A.2.png")
    assert done(manifest, first, ".png", ".png") == ["a.png", "a.2.png"]
    (output / "a.2.png").unlink()
    assert done(manifest, second, ".png") == ["A.2_2.png"]


def test_what_a_killed_batch_left_is_removed(begin, output):
    begin("a.png")
    arrived(output, ".png")
    begin("a.png")
    assert [path.name for path in output.iterdir()] == [MANIFEST]


def test_a_stop_before_the_file_is_in_its_place(begin, output):
    """The old file is not taken for the new one, and its name stays the item's."""
    manifest, (item,) = begin("a.png")
    done(manifest, item, ".png")
    item.picture.write_text("another picture")
    manifest = Manifest(output, "settings")
    (item,) = manifest.to_do([item])
    with pytest.raises(FileNotFoundError):
        manifest.done(item, [output / "gone.png"])
    manifest = Manifest(output, "settings")
    (item,) = manifest.to_do([item])
    assert done(manifest, item, ".png") == ["a.png"]
    assert manifest.to_do([item]) == []


@pytest.mark.parametrize(
    "pictures", ['{"a": {}}', '{"a": []}', '{"a": {"name": 1}}', '{"a": {"name": "a", "files": [1]}}', "[1]"]
)
def test_another_record_is_refused(output, pictures):
    output.mkdir(exist_ok=True)
    (output / MANIFEST).write_text(f'{{"pictures": {pictures}}}')
    with pytest.raises(ExVideoError, match="should be the record of a batch"):
        Manifest(output, "settings")


def test_a_record_saved_by_an_editor_of_windows_is_known(begin):
    manifest, (item,) = begin("a.png")
    done(manifest, item, ".mp4")
    manifest.path.write_text(manifest.path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert begin("a.png")[1] == []


def test_a_record_that_cannot_be_kept_leaves_no_file_behind(begin, output):
    manifest, (item,) = begin("a.png")
    elsewhere = output.with_name("elsewhere")
    elsewhere.mkdir()
    files = arrived(elsewhere, ".png")
    shutil.rmtree(output)
    with pytest.raises(RecordError, match=r"batch\.json cannot be written .*: free some space"):
        manifest.done(item, files)
    assert not output.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only there any bytes are a name")
def test_a_name_that_is_no_text(begin, output):
    name = os.fsdecode(b"caf\xe9.png")
    manifest, (item,) = begin(name)
    assert done(manifest, item, ".mp4") == [os.fsdecode(b"caf\xe9.mp4")]
    kept = json.loads((output / MANIFEST).read_text(encoding="utf-8"))["pictures"]
    assert [Path(picture).name for picture in kept] == [name]
    assert begin(name)[1] == []


def test_names_that_differ_in_case_alone_are_numbered(begin):
    """Some systems know them for one."""
    _, items = begin("A.png", "a.jpg", "A.bmp")
    assert [item.name for item in items] == ["A", "a_2", "A_3"]


def test_hidden_files_of_a_folder_are_no_pictures(tmp_path):
    """As a system's own, ._a.png say, beside what was copied from it."""
    for name in ("._a.png", "a.png"):
        (tmp_path / name).touch()
    assert [item.picture.name for item in find_pictures([tmp_path])] == ["a.png"]
