"""Files of a long run: those of another run, or of another part, are made again; a folder that takes none is told."""

import shutil
from pathlib import Path

import pytest
import torch

from dev.small_disk import on_small_disk
from exvideo_core.files import checksum, save_tensors
from exvideo_core.plan import chain_segments
from exvideo_core.run_store import RunStore
from exvideo_core.types import ExVideoError, LatentShape

SHAPE, STEPS = LatentShape(13, 4, 8, 8), 3
SEGMENTS = chain_segments(SHAPE.frames, 5, 1, 0)
SETTINGS = {"seed": 5, "size": 64, "steps": STEPS}


def store(folder, shape=SHAPE, steps=STEPS, **settings):
    return RunStore(folder, {**SETTINGS, **settings}, shape, steps)


def latents(shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def finished(folder, shape=SHAPE, steps=STEPS, **settings):
    """A run of which all segments are there, and the last step."""
    run = store(folder, shape, steps, **settings)
    for segment in SEGMENTS:
        run.save(segment, latents(shape._replace(frames=segment.new.frames), segment.number))
    run.save_step(steps - 1, latents(shape))
    return folder


def there(run):
    """Numbers of the segments that are found."""
    return [segment.number for segment in SEGMENTS if run.load(segment) is not None]


def test_what_is_kept_is_found_by_the_same_run(tmp_path, caplog):
    finished(tmp_path)
    # The same numbers, as other programs write them, in another order.
    run = RunStore(tmp_path, {"steps": 3.0, "size": 64.0, "seed": 5}, SHAPE, STEPS)
    for segment in SEGMENTS:
        assert torch.equal(run.load(segment), latents(SHAPE._replace(frames=segment.new.frames), segment.number))
    step, begun = run.load_step()
    assert step == STEPS - 1
    assert torch.equal(begun, latents(SHAPE))
    assert not caplog.text


MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped")
def test_a_file_is_not_held_by_what_was_read_of_it(tmp_path):
    """Windows would refuse to write the next step over it."""
    run = store(finished(tmp_path))
    held = [run.load(SEGMENTS[0]), run.load_step()]
    assert all(part is not None for part in held)
    assert str(tmp_path) not in MAPS.read_text()


def test_swapped_segments_are_made_again(tmp_path, caplog):
    one, two = (finished(tmp_path) / f"segment_{number:05}.latents" for number in (1, 2))
    assert SEGMENTS[1].new.frames == SEGMENTS[2].new.frames
    data = one.read_bytes()
    two.rename(one)
    two.write_bytes(data)
    assert there(store(tmp_path)) == [0]
    assert f"{one}, for it is another part (it says segment 2)" in caplog.text
    assert f"{two}, for it is another part (it says segment 1)" in caplog.text


def test_frames_of_another_cut_are_made_again(tmp_path, caplog):
    finished(tmp_path)
    moved = SEGMENTS[1]._replace(pinned=2)
    assert store(tmp_path).load(moved) is None
    assert "it says frames 5 to 8" in caplog.text


@pytest.mark.parametrize(
    "other",
    [{"seed": 6}, {"size": 128, "shape": SHAPE._replace(height=16)}, {"steps": 8}],
    ids=["seed", "size", "steps"],
)
def test_parts_of_another_run_are_made_again(tmp_path, caplog, other):
    store(tmp_path / "mine")
    theirs = finished(tmp_path / "theirs", **{"settings": "other", **other})
    for path in theirs.glob("*.latents"):
        shutil.copy(path, tmp_path / "mine")
    mine = store(tmp_path / "mine")
    assert there(mine) == []
    assert mine.load_step() is None
    assert caplog.text.count("for it is of another run") == len(SEGMENTS) + 1


def write(path, tensor, **texts):
    save_tensors(path, {"latents": tensor}, {"sha256": checksum(tensor), **texts})


def test_parts_that_an_earlier_version_kept_are_made_again(tmp_path, caplog):
    run = store(tmp_path)
    new = SEGMENTS[1].new
    write(
        tmp_path / "segment_00001.latents",
        latents(SHAPE._replace(frames=new.frames)),
        frames=f"{new.start} to {new.stop - 1}",
    )
    write(tmp_path / "step.latents", latents(SHAPE), step="1")
    assert there(run) == []
    assert run.load_step() is None
    assert caplog.text.count("for it does not say which run it is of") == 2


@pytest.mark.parametrize("step", ["3 of 3", "-1 of 3", "1", "1 of 8", "one of 3", None])
def test_a_step_that_there_is_not_is_made_again(tmp_path, caplog, step):
    run = store(tmp_path)
    write(tmp_path / "step.latents", latents(SHAPE), run=run._run, **({"step": step} if step else {}))
    assert run.load_step() is None
    assert f"for it is another part (it says step {step})" in caplog.text


def test_latents_of_another_shape_are_made_again(tmp_path, caplog):
    """Its checksum is that of the right ones: it knows the numbers, not how they lie."""
    run = store(finished(tmp_path))
    run.save_step(1, latents(SHAPE).reshape(13, 4, 4, 16))
    run.save(SEGMENTS[1], latents((4, 4, 16, 4)))
    assert there(run) == [0, 2]
    assert run.load_step() is None
    assert "for it is of another shape ([4, 4, 16, 4], and should be [4, 4, 8, 8])" in caplog.text


SCRIPT = """
import json, subprocess, sys
from pathlib import Path
import torch
from exvideo_core.long_sampling import sample_chain
from exvideo_core.plan import chain_segments
from exvideo_core.run_store import RunStore
from exvideo_core.types import ExVideoError, LatentShape

disk, how = Path(sys.argv[1]), sys.argv[2]
shape, segments = LatentShape(13, 4, 8, 8), chain_segments(13, 5, 1, 0)
sampled = []

def sample(segment, picture, start):
    sampled.append(segment.number)
    return start + segment.number

def chain(name):
    store = RunStore(disk / name, {"seed": 5}, shape, 3)
    return sample_chain(segments, torch.zeros(shape), sample, lambda clip, frame: None, store)

def told(do):
    sampled.clear()
    try:
        do()
    except ExVideoError as error:
        return [str(error), sampled[:]]
    return ["", sampled[:]]

whole = chain("whole")
chain("part")
(disk / "part" / "segment_00001.latents").unlink()
RunStore(disk / "steps", {"seed": 5}, shape, 3).save_step(1, torch.zeros(shape))
if how == "read-only":
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
else:
    with (disk / "filling").open("wb", buffering=0) as filling:
        try:
            while filling.write(bytes(4096)):
                pass
        except OSError:
            pass
said = {
    "whole": told(lambda: chain("whole")),
    "part": told(lambda: chain("part")),
    "steps": told(RunStore(disk / "steps", {"seed": 5}, shape, 3).load_step),
    "new": told(lambda: chain("new")),
    "same": torch.equal(chain("whole"), whole),
    "left": sorted(path.name for path in disk.rglob(".*")),
}
print(json.dumps(said))
"""


@pytest.mark.parametrize(("how", "why"), [("read-only", "Read-only file system"), ("full", "No space left on device")])
def test_a_folder_that_takes_no_more_is_told_before_any_sampling(tmp_path, how, why):
    said = on_small_disk(tmp_path, "400k", SCRIPT, str(tmp_path), how)
    if said is None:
        pytest.skip("no small disk can be made here")
    for run in ("part", "steps", "new"):
        text, sampled = said[run]
        assert text.startswith(f"A long run cannot be kept in {tmp_path / run} (")
        assert why in text
        assert sampled == []
    # A finished chain needs nothing written.
    assert said["whole"] == ["", []]
    assert said["same"]
    assert said["left"] == []


def test_a_folder_with_hidden_files_alone_is_empty(tmp_path):
    """As a system's own, which it puts into every folder that it shows."""
    (tmp_path / ".DS_Store").touch()
    assert there(store(finished(tmp_path))) == [0, 1, 2]


def test_what_is_not_finite_is_made_again(tmp_path, caplog):
    """An earlier version kept it."""
    run = store(finished(tmp_path))
    nothing = torch.full(SHAPE._replace(frames=SEGMENTS[1].new.frames), torch.nan)
    run.save(SEGMENTS[1], nothing)
    assert there(run) == [0, 2]
    assert "segment_00001.latents, for it holds numbers that are not finite (NaN)" in caplog.text
    run.save_step(STEPS - 2, latents(SHAPE, 7))
    run.save_step(STEPS - 1, torch.full(SHAPE, torch.inf))
    step, begun = run.load_step()
    assert step == STEPS - 2
    assert torch.equal(begun, latents(SHAPE, 7))


def test_a_run_that_made_nothing_yet_binds_nobody(tmp_path, caplog):
    """As one that was refused for a wrong input, or cancelled in its first segment."""
    store(tmp_path, seed=1)
    run = store(tmp_path, seed=2)
    run.save(SEGMENTS[0], latents(SHAPE._replace(frames=SEGMENTS[0].new.frames)))
    with pytest.raises(ExVideoError, match="seed was 2 and is 1"):
        store(tmp_path, seed=1)
    assert there(store(tmp_path, seed=2)) == [0]
    assert not caplog.text


def test_checksums_are_told_to_nobody(tmp_path):
    finished(tmp_path, picture=checksum(torch.ones(1)), size=64)
    with pytest.raises(ExVideoError, match="size was 64 and is 65, picture was another"):
        store(tmp_path, picture=checksum(torch.zeros(1)), size=65)


FILLING = """
import json, sys
from pathlib import Path
import torch
from exvideo_core.long_sampling import sample_chain
from exvideo_core.plan import chain_segments
from exvideo_core.run_store import RunStore
from exvideo_core.types import ExVideoError, LatentShape

disk = Path(sys.argv[1])
shape, segments = LatentShape(13, 4, 32, 32), chain_segments(13, 5, 1, 0)

def sample(segment, picture, start):
    if segment.number == 1:  # another program takes what is left, meanwhile
        (disk / "other").write_bytes(bytes(disk_left() - 10_000))
    return start + segment.number + 1

def disk_left():
    import os
    return os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize

def chain(name):
    store = RunStore(disk / name, {"seed": 5}, shape, 3) if name else None
    return sample_chain(segments, torch.zeros(shape), sample, lambda clip, frame: None, store)

def told(name):
    try:
        return ["", chain(name).flatten()[:: 4 * 32 * 32].tolist()]
    except ExVideoError as error:
        return [str(error), []]

first = told("run")
print(json.dumps([first, sorted(path.name for path in (disk / "run").iterdir())]))
"""


def test_a_segment_that_finds_no_room_any_more_is_not_lost(tmp_path):
    """There was room when it was begun. The next is not begun without."""
    found = on_small_disk(tmp_path, "400k", FILLING, str(tmp_path))
    if found is None:
        pytest.skip("no small disk can be made here")
    (said, _), names = found
    assert said.startswith(f"A long run cannot be kept in {tmp_path / 'run'} (")
    assert names == ["run.json", "segment_00000.latents"]


def test_a_last_segment_that_finds_no_room_any_more_is_in_the_video(tmp_path):
    found = on_small_disk(tmp_path, "400k", FILLING.replace("number == 1", "number == 2"), str(tmp_path))
    if found is None:
        pytest.skip("no small disk can be made here")
    (said, clip), names = found
    assert (said, clip) == ("", [1.0] * 5 + [2.0] * 4 + [3.0] * 4)
    assert names == ["run.json", "segment_00000.latents", "segment_00001.latents"]
