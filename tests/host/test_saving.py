"""What may go wrong where files are saved, and what is said of it."""

import folder_paths
import pytest
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.types import ExVideoError


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
