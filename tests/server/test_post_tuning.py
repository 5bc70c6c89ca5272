"""Post-tuning through the real server's queue."""

import json
import shutil
import threading

import pytest
import requests
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dev.videos import draw_video
from exvideo_core.batch.client import ClientError, PromptCancelledError

TINY = {"ckpt_name": "exvideo_tiny_svd.safetensors", "exvideo_name": "exvideo_tiny_128f.safetensors"}


@pytest.fixture
def videos(server):
    """In the input folder, under the node's default name."""
    folder = server.base / "input" / "videos"
    draw_video(folder / "a.mp4", source="testsrc=size=80x64:rate=30")
    return folder


def graph(**inputs):
    tuned = {
        "model": ["1", 0], "clip_vision": ["1", 1], "vae": ["1", 2], "exvideo": ["2", 0], "videos": "videos",
        "steps": 3, "learning_rate": 1e-4, "width": 64, "height": 64, "seed": 1, "num_frames": 8, **inputs,
    }  # fmt: skip
    return {
        "1": {"class_type": "ExVideoCheckpointLoader", "inputs": TINY},
        "2": {"class_type": "ExVideoLoader", "inputs": {"exvideo_name": TINY["exvideo_name"]}},
        "3": {"class_type": "ExVideoPostTune", "inputs": tuned},
        "4": {
            "class_type": "ExVideoSaveExtension",
            "inputs": {"exvideo": ["3", 0], "filename_prefix": "exvideo/tuned"},
        },
    }


def finish(client, prompt):
    prompt_id, events = client.queue(prompt, None), []
    client.follow(prompt_id, lambda kind, data: events.append((kind, data)))
    return client.history(prompt_id), events


def test_a_folder_of_videos_becomes_an_extension(client, server, videos):
    history, events = finish(client, graph(run_name="queue"))
    (curve,) = history["outputs"]["3"]["images"]
    picture = requests.get(f"{server.url}/view", params=curve, timeout=30)
    assert picture.headers["content-type"] == "image/png"
    steps = [data for kind, data in events if kind == "progress" and data["node"] == "3"]
    assert (steps[-1]["value"], steps[-1]["max"]) == (3, 3)
    folder = server.base / "output" / "exvideo"
    for path in (folder / "queue" / "extension.safetensors", folder / "tuned_00001_.safetensors"):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        assert metadata["frames"] == "128"
        assert json.loads(metadata["training"])["steps"] == 3
    listed = str(server.get("/object_info/ExVideoLoader")["ExVideoLoader"]["input"]["required"]["exvideo_name"])
    assert "queue/extension.safetensors" in listed
    assert "training.state" not in listed
    assert list((folder / "post_tuning_cache").iterdir())
    assert "post_tuning_cache" not in listed


def test_an_interrupt_keeps_what_was_learned_and_the_next_run_goes_on(client, server, videos):
    timer = None

    def interrupt(kind, data):
        nonlocal timer
        if kind == "progress" and data["node"] == "3" and data["max"] == 1000 and data["value"] >= 4 and not timer:
            timer = threading.Thread(target=requests.post, args=(f"{server.url}/interrupt",), kwargs={"timeout": 30})
            timer.start()

    prompt_id = client.queue(graph(run_name="stopped", steps=1000), None)
    with pytest.raises(PromptCancelledError):
        client.follow(prompt_id, interrupt)
    path = server.base / "output" / "exvideo" / "stopped" / "extension.safetensors"
    with safe_open(path, framework="pt") as file:
        learned = json.loads(file.metadata()["training"])["steps"]
    assert 4 <= learned < 1000
    _, events = finish(client, graph(run_name="stopped", steps=learned + 1))
    steps = [data["value"] for kind, data in events if kind == "progress" and data["node"] == "3" and data["max"] > 1]
    assert steps[-1] == learned + 1
    assert not set(range(3, learned)) & set(steps)


def test_the_page_leaves_the_seed_so_that_a_stopped_run_goes_on(object_info):
    assert object_info["ExVideoPostTune"]["input"]["required"]["seed"][1]["control_after_generate"] is False


def test_an_extension_that_was_written_again_is_read_again(client, server, tmp_path):
    """Here, when the graph is queued again as it was."""
    folder, name = server.base / "models" / "exvideo", "again.safetensors"
    shutil.copy(folder / TINY["exvideo_name"], folder / name)
    prompt = {
        "1": {"class_type": "ExVideoLoader", "inputs": {"exvideo_name": name}},
        "2": {
            "class_type": "ExVideoSaveExtension",
            "inputs": {"exvideo": ["1", 0], "filename_prefix": "exvideo/again"},
        },
    }

    def saved():
        finish(client, prompt)
        return sorted((server.base / "output" / "exvideo").glob("again*"))

    (first,) = saved()
    assert saved() == [first]
    tensors = load_file(folder / name)
    save_file({key: tensor / 2 for key, tensor in tensors.items()}, tmp_path / name)
    (tmp_path / name).replace(folder / name)
    _, second = saved()
    halves = load_file(second)
    assert all(torch.equal(halves[key], tensor / 2) for key, tensor in load_file(first).items())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"videos": "nowhere"}, r"There is no folder .*nowhere"),
        ({"videos": "~nosuchuser/x"}, r"There is no folder .*~nosuchuser"),
        ({"videos": " "}, "needs a folder of videos"),
        ({"run_name": "a\0b"}, r"does not name one: choose a name such as post_tuning"),
        ({"run_name": "../../outside"}, r"does not name one: choose a name such as post_tuning"),
        ({"run_name": "n" * 300}, r"does not name one: choose a name such as post_tuning"),
        ({"run_name": "post_tuning_cache"}, r"is for the encoded clips .*: choose another name, such as post_tuning"),
        ({"num_frames": 100}, "None of the 1 files .* has 30 frames"),
    ],
)
def test_bad_input_ends_in_a_sentence(client, videos, saved_files, inputs, message):
    before = saved_files()
    with pytest.raises(ClientError, match=f"ExVideoPostTune.*{message}"):
        finish(client, graph(**inputs))
    assert {path for path in saved_files() - before if "post_tuning_cache" not in path.parts} == set()
