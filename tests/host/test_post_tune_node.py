"""The node that post-tunes: where its runs are kept, what it hands on, and when the host runs it again."""

import inspect
import sys

import folder_paths
import pytest
import torch
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.post_tuning.recipe import Recipe
from exvideo_pack.exvideo_core.types import ExVideoError

LINKS = pytest.mark.skipif(sys.platform == "win32", reason="there links need a permission")


@pytest.fixture
def output(tmp_path, monkeypatch):
    """The host's output folder; `exvideo` in it is a link to another disk, say."""
    folder = tmp_path / "output"
    (tmp_path / "disk").mkdir()
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folder))
    return folder


@LINKS
def test_runs_may_be_kept_behind_a_link(output, tmp_path):
    (output / "exvideo").symlink_to(tmp_path / "disk")
    for name, subfolder in {"a": "exvideo/a", "a/b": "exvideo/a/b", str(output / "exvideo" / "c"): "exvideo/c"}.items():
        folder, told = host.run_folder(name)
        assert (folder, told) == ((output / subfolder).resolve(), subfolder)
    for name in ("", ".", "..", "../outside", str(tmp_path / "disk"), str(tmp_path / "elsewhere")):
        with pytest.raises(ExVideoError, match="does not name one"):
            host.run_folder(name)


@pytest.mark.parametrize("name", ["n" * 300, "\ud800", "a\udc80", "a/" + "\u6620" * 300])
def test_a_run_s_name_that_no_folder_can_have_is_refused(output, name):
    with pytest.raises(ExVideoError, match="does not name one: choose a name such as post_tuning"):
        host.run_folder(name)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("post_tuning_cache", "the encoded clips of all runs, which may be deleted"),
        ("post_tuning_cache/mine", "the encoded clips of all runs, which may be deleted"),
        ("mine/post_tuning_cache", "the encoded clips of all runs, which may be deleted"),
        ("other/../Post_Tuning_Cache", "the encoded clips of all runs, which may be deleted"),
        ("runs", "the Long Sampler's runs"),
        ("runs/holiday", "the Long Sampler's runs"),
    ],
)
def test_a_run_is_not_kept_among_other_things(output, name, what):
    with pytest.raises(ExVideoError, match=rf"^A run is kept in .*, and output/exvideo/\S+ is for {what}: choose"):
        host.run_folder(name)
    assert host.run_folder("mine/runs")[1] == "exvideo/mine/runs"


@LINKS
def test_what_videos_are_there_is_what_the_host_compares(nodes, tmp_path, caplog):
    """Also behind links; of a folder that another node names nothing is known."""
    compared = nodes["ExVideoPostTune"].fingerprint_inputs
    for nothing in (None, "", " ", str(tmp_path), "~nosuchuser/x", "n" * 300):
        assert compared(videos=nothing) == ""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.mp4").touch()
    before = compared(videos=str(tmp_path / "videos"))
    (tmp_path / "videos" / "link").symlink_to(tmp_path / "elsewhere")
    after = compared(videos=str(tmp_path / "videos"))
    assert len({"", before, after}) == 3
    assert "mp4" not in before + after  # it is stored in files, which may be given away
    assert compared(videos=str(tmp_path / "videos")) == after
    (tmp_path / "elsewhere" / "b.mp4").write_bytes(b"other")
    assert compared(videos=str(tmp_path / "videos")) != after


def test_the_node_hands_on_what_it_is_given(run, loaded, extension, output, tmp_path, monkeypatch):
    theirs, told = inspect.signature(host.post_tune), []

    def noted(*args, **options):
        told.append(theirs.bind(*args, **options).arguments)
        return extension, [1.0, 0.5]

    monkeypatch.setattr(host, "post_tune", noted)
    learned, losses = run(
        "ExVideoPostTune", **dict(zip(("model", "clip_vision", "vae"), loaded, strict=True)), exvideo=extension,
        videos=f" {tmp_path} ", steps=7, learning_rate=2e-5, width=72, height=64, seed=3, num_frames=9, fps=12.0,
        run_name="mine", memory="low", save_every=2,
    )  # fmt: skip
    assert learned is extension
    assert losses == {"loss": [torch.tensor(1.0), torch.tensor(0.5)]}
    (given,) = told
    assert given["size"] == (64, 72)
    assert given["recipe"] == Recipe(7, 2e-5, 3, 12.0, save_every=2)
    assert (given["num_frames"], given["memory"]) == (9, "low")
    assert (given["videos"], given["folder"]) == (tmp_path, (output / "exvideo" / "mine").resolve())
