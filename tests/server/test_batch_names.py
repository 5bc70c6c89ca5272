"""What a batch calls its files: no picture and no other file is ever written over, whatever their names."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from dev.environment import ROOT
from exvideo_core.batch.__main__ import main
from exvideo_core.batch.manifest import MANIFEST
from tests.server.test_batch import draw, records

SMALL = 'mount -t tmpfs -o size=8k tmpfs "$1" && shift && exec "$@"'
"""A disk with room for a record and a picture, in a namespace of its own."""


@pytest.fixture
def command(server, tmp_path):
    """The arguments of a batch that saves each picture inverted, and where wanted another time as it is."""

    def words(*pictures, output, both=False):
        graph = {
            "1": {"class_type": "LoadImage", "inputs": {"image": ""}},
            "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inverted"}},
        }
        if both:  # which ends first, as it waits for less
            graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "as it is"}}
        (tmp_path / "graph.json").write_text(json.dumps(graph))
        chosen = [f"--workflow={tmp_path / 'graph.json'}", f"--output={output}", f"--server={server.url}"]
        return [*map(str, pictures), *chosen]

    return words


def colour(path):
    with Image.open(path) as image:
        return image.getpixel((0, 0))


def test_pictures_are_not_written_over(command, tmp_path, capsys):
    folder = tmp_path / "pictures"
    one, two = draw(folder / "one.png", (1, 2, 3)), draw(folder / "two.png", (4, 5, 6))
    for pictures, output in (([one, two], folder), ([folder], tmp_path)):
        assert main(command(*pictures, output=output)) == 0
        assert [colour(path) for path in (one, two)] == [(1, 2, 3), (4, 5, 6)]
        assert [colour(folder / f"{name}_2.png") for name in ("one", "two")] == [(254, 253, 252), (251, 250, 249)]
        capsys.readouterr()
        # What it made lies among the pictures, and is none.
        assert main(command(folder, output=output)) == 0
        assert "0 of 2 pictures are to be done" in capsys.readouterr().out
        draw(two, (7, 8, 9))
        assert main(command(folder, output=output)) == 0
        assert colour(folder / "two_2.png") == (248, 247, 246)
        assert sorted(path.name for path in folder.glob("*.png")) == ["one.png", "one_2.png", "two.png", "two_2.png"]
        for path in (folder / "one_2.png", folder / "two_2.png", output / MANIFEST):
            path.unlink()
        draw(two, (4, 5, 6))


def test_files_of_several_nodes_are_in_the_order_of_the_workflow_and_apart(command, tmp_path):
    pictures = [draw(tmp_path / "beach.png", (1, 2, 3)), draw(tmp_path / "beach.2.png", (4, 5, 6))]
    output = tmp_path / "made"
    assert main(command(*pictures, output=output, both=True)) == 0
    kept = records(output)
    assert kept["beach"]["files"] == ["beach.png", "beach.2.png"]
    assert kept["beach.2"]["files"] == ["beach.2_2.png", "beach.2_2.2.png"]
    made = [colour(output / file) for record in kept.values() for file in record["files"]]
    assert made == [(254, 253, 252), (1, 2, 3), (251, 250, 249), (4, 5, 6)]


@pytest.mark.skipif(sys.platform != "linux", reason="only there any bytes are a name")
def test_names_that_a_terminal_cannot_show(command, tmp_path):
    for name in ("猫.png", os.fsdecode(b"caf\xe9.png")):
        draw(tmp_path / "pictures" / name)
    program = [sys.executable, "-m", "exvideo_core.batch", *command(tmp_path / "pictures", output=tmp_path / "made")]
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert b"2 done, 0 failed" in done.stdout
    made = sorted(os.listdir(os.fsencode(tmp_path / "made" / "pictures")))
    assert made == [b"caf\xe9.png", "猫.png".encode()]


def test_a_disk_too_full_for_the_record(command, tmp_path):
    unshare, output = shutil.which("unshare"), tmp_path / "made"
    output.mkdir()
    small = [unshare, "--user", "--map-root-user", "--mount", "sh", "-c", SMALL, "sh", str(output)]
    if unshare is None or subprocess.run([*small, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be made here")
    pictures = [draw(tmp_path / f"{number}.png", (number, 2, 3)) for number in range(2)]
    program = [sys.executable, "-m", "exvideo_core.batch", *command(*pictures, output=output)]
    done = subprocess.run([*small, *program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert not done.stderr
    assert f"{output / MANIFEST} cannot be written ([Errno 28] No space left on device" in done.stdout
    assert "free some space, and give the same command again." in done.stdout
