"""A batch over several servers, by Ray: what is lost on the way is made elsewhere, and once."""

import os
import signal
import sys

import psutil
import pytest

from exvideo_core.batch.__main__ import main
from exvideo_core.batch.manifest import MANIFEST
from tests.server.test_batch import LONG, draw, frames, records, start, until, words

COUNT = 4


@pytest.fixture
def pictures(tmp_path):
    for number in range(COUNT):
        draw(tmp_path / "pictures" / f"{number}.png", (10, 20, 30 + number))
    return tmp_path / "pictures"


def workers(program):
    """Ray's processes that make an item."""
    return [process for process in psutil.Process(program.pid).children(recursive=True) if "_Worker" in process.name()]


def all_made_once(said, output):
    assert f"{COUNT} done, 0 failed, 0 not reached" in said
    assert sorted(record["files"] for record in records(output).values()) == [
        [f"pictures/{number}.mp4"] for number in range(COUNT)
    ]
    assert [frames(output / "pictures" / f"{number}.mp4") for number in range(COUNT)] == [LONG["3.num_frames"]] * COUNT
    # An item that is made is told with its file, one that goes elsewhere with its error.
    assert [said.count(f": pictures/{number}.mp4\n") for number in range(COUNT)] == [1] * COUNT


@pytest.mark.slow
def test_a_server_and_a_worker_are_lost(server, start_server, pictures, tmp_path):
    output = tmp_path / "videos"
    with start_server() as other:
        process = start(pictures, url=[server.url, other.url], output=output, **LONG)
        until(lambda: len(list(output.rglob("*.mp4"))) and other.get("/queue")["queue_running"], process)
        os.killpg(other.group, signal.SIGKILL)
        until(lambda: workers(process), process)
        for worker in workers(process):
            worker.kill()
        said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert f"on {other.url}: ComfyUI at {other.url} cannot be reached" in said
    all_made_once(said, output)


@pytest.mark.slow
def test_ctrl_c_stops_every_server(server, start_server, pictures, tmp_path):
    output = tmp_path / "videos"
    with start_server() as other:
        both = [server, other]
        process = start(pictures, url=[one.url for one in both], output=output, **LONG, **{"ExVideoSampler.seed": 5})
        until(lambda: all(one.get("/queue")["queue_running"] for one in both), process)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert not [one for one in both if any(one.get("/queue").values())]


def test_without_ray_it_says_what_to_install(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    urls = ["http://127.0.0.1:9", "http://127.0.0.1:19"]
    assert main(words(pictures, url=urls, output=tmp_path / "videos")) == 2
    assert "Several servers need Ray: install it" in capsys.readouterr().err
    assert not (tmp_path / "videos" / MANIFEST).exists()
