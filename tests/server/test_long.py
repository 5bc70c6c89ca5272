"""A long run on a real server: killed in the middle, it goes on to the same bits."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from dev.environment import ROOT, Environment
from dev.server import Server
from exvideo_core.batch.client import Client, ClientError, PromptCancelledError

TINY = {"ckpt_name": "exvideo_tiny_svd.safetensors", "exvideo_name": "exvideo_tiny_128f.safetensors"}
TOTAL = 26


def graph(client, **inputs):
    picture = client.upload_image(ROOT / "assets" / "photo.jpg")
    links = {"model": ["2", 0], "clip_vision": ["2", 1], "vae": ["2", 2], "init_image": ["1", 0]}
    shape = {"total_frames": TOTAL, "segment_frames": 8, "overlap": 2, "width": 64, "height": 64}
    ids = {"motion_bucket_id": 127, "fps": 30, "augmentation_level": 0.02}
    sampling = {"seed": 3, "steps": 2, "min_cfg": 2.0, "max_cfg": 2.0, "normalize": True, "contrast": 1.2}
    rest = {"mode": "chain", "loop": False, "checkpoint_name": ""}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": picture}},
        "2": {"class_type": "ExVideoCheckpointLoader", "inputs": TINY},
        "3": {"class_type": "ExVideoLongSampler", "inputs": {**links, **shape, **ids, **sampling, **rest, **inputs}},
        "4": {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": "long"}},
    }


def latents(server):
    return load_file(max((server.base / "output").glob("long_*.latent")))["latent_tensor"]


def wait_for(path):
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(start_server):
    with start_server() as first:
        with Client(first.url, first.alive) as client:
            client.follow(client.queue(graph(client)), lambda kind, data: None)
            expected = latents(first)
            assert expected.shape == (TOTAL, 4, 8, 8)
            client.queue(graph(client, checkpoint_name="mine"))
            run = first.base / "output" / "exvideo" / "runs" / "mine"
            wait_for(run / "segment_00001.latents")
            os.killpg(first.group, signal.SIGKILL)
        again = Server(Environment(first.python, first.comfyui), first.base, cpu=True)
    kept = {path.name: path.stat().st_mtime_ns for path in run.glob("segment*")}
    assert 2 <= len(kept) < 4
    with again, Client(again.url, again.alive) as client:
        client.follow(client.queue(graph(client, checkpoint_name="mine")), lambda kind, data: None)
        assert torch.equal(latents(again), expected)
        with pytest.raises(ClientError, match=r"ExVideoLongSampler.*steps was 2 and is 3"):
            client.follow(client.queue(graph(client, checkpoint_name="mine", steps=3)), lambda kind, data: None)
    after = {path.name: path.stat().st_mtime_ns for path in run.glob("segment*")}
    assert len(after) == 4
    assert {name: after[name] for name in kept} == kept


def test_progress_counts_all_segments_and_a_cancel_keeps_what_is_done(client, server):
    seen = []

    def on_event(kind, data):
        if kind == "progress" and data["node"] == "3":
            seen.append((data["value"], data["max"]))
            if data["value"] == 5:
                client.interrupt()

    prompt_id = client.queue(graph(client, checkpoint_name="cancelled", seed=9))
    with pytest.raises(PromptCancelledError):
        client.follow(prompt_id, on_event)
    assert {total for _, total in seen} == {2 * 4}
    assert [value for value, _ in seen] == sorted(value for value, _ in seen)
    assert len(list((server.base / "output" / "exvideo" / "runs" / "cancelled").glob("segment*"))) == 2
    # They lie where extensions are looked for, and are none.
    (_, listed) = client.object_info()["ExVideoLoader"]["input"]["required"]["exvideo_name"]
    assert not [name for name in listed["options"] if "runs" in name]
