"""The pack in a running ComfyUI: what a page or an API client sees."""

import contextlib
import json
import threading
import time

import av
import pytest
import requests
import torch
import websocket
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from dev.environment import ROOT
from exvideo_core.batch.client import Client, ClientError, PromptCancelledError, outputs
from tests.server.conftest import TINY

TEXT = 3
"""Of messages that are bytes, the kind that the page shows as text."""
NODES = {
    "ExVideoLoader", "ExVideoCheckpointLoader", "ExVideoInit", "ExVideoApply", "ExVideoConditioning",
    "ExVideoScheduler", "ExVideoSampler", "ExVideoLongSampler", "ExVideoDecode", "ExVideoInterpolate",
    "ExVideoSave", "ExVideoRender", "ExVideoPostTune", "ExVideoSaveExtension", "ExVideoDoctor",
}  # fmt: skip


def finish(client, workflow):
    prompt, page = workflow
    prompt_id = client.queue(prompt, page)
    events = []
    client.follow(prompt_id, lambda kind, data: events.append((kind, data)))
    return client.history(prompt_id), events


def test_every_node_is_there_and_nothing_is_logged(object_info, server):
    ours = {name for name, node in object_info.items() if node["python_module"] == "custom_nodes.exvideo"}
    assert ours == NODES
    assert all(object_info[name]["category"] == "ExVideo" for name in ours)
    assert not [
        line for line in server.log.read_text().splitlines() if "exvideo" in line.lower() and "warn" in line.lower()
    ]
    assert "(IMPORT FAILED)" not in server.log.read_text()


def test_a_picture_becomes_a_video_of_128_frames(client, image_to_video, server, tmp_path):
    workflow = image_to_video()
    history, events = finish(client, workflow)
    (saved,) = outputs(history)
    results = history["outputs"][saved.node]
    assert results["animated"] == [True]
    assert (saved.subfolder, saved.type) == ("video", "output")

    path = tmp_path / "video.mp4"
    client.download(saved, path)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 64, 64)
        assert float(stream.average_rate) == 30.0
        assert float(stream.duration * stream.time_base) == pytest.approx(128 / 30, abs=0.01)
        kept = json.loads(container.metadata["prompt"])
        for node in kept.values():
            node.pop("is_changed", None)  # the host's own note, for its cache
        assert kept == workflow[0]
        assert json.loads(container.metadata["workflow"]) == workflow[1]
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")).float() for frame in container.decode(video=0)]
    assert len(frames) == 128
    clip = torch.stack(frames) / 255
    assert clip.std() > 0.02
    assert (clip[1:] - clip[:-1]).abs().mean() > 0

    nodes = {data["node"] for kind, data in events if kind == "progress"}
    titles = {workflow[0][node]["class_type"] for node in nodes}
    assert {"ExVideoSampler", "ExVideoDecode", "ExVideoSave"} <= titles


def test_one_prompt_twice_gives_the_same_pixels(client, image_to_video, server, tmp_path):
    pixels = []
    for turn in range(2):
        # Without this the host would hand back the frames it still has.
        requests.post(f"{server.url}/free", json={"unload_models": True, "free_memory": True}, timeout=30)
        time.sleep(1)
        workflow = image_to_video(
            ExVideoConditioning={"num_frames": 4}, ExVideoSave={"filename_prefix": f"same/{turn}"}
        )
        history, events = finish(client, workflow)
        ran = {data["node"] for kind, data in events if kind == "progress"}
        assert "ExVideoSampler" in {workflow[0][node]["class_type"] for node in ran}
        (saved,) = outputs(history)
        client.download(saved, tmp_path / f"{turn}.mp4")
        with av.open(str(tmp_path / f"{turn}.mp4")) as container:
            pixels.append([frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)])
    assert pixels[0] == pixels[1]


def test_a_clip_that_is_too_long_says_so_and_the_queue_goes_on(client, image_to_video, saved_files):
    before = saved_files()
    with pytest.raises(ClientError, match=r"ExVideoSampler.*reaches 128 frames, but the latent has 129"):
        finish(client, image_to_video(ExVideoConditioning={"num_frames": 129}))
    assert saved_files() == before
    finish(client, image_to_video(ExVideoConditioning={"num_frames": 2}))
    assert len(saved_files()) == len(before) + 1


def test_a_missing_model_is_named(client, image_to_video):
    # By the host before anything runs, or by the node: 0.3.75 does not check lists of V3 nodes.
    prompt, page = image_to_video()
    (loader,) = (node for node in prompt.values() if node["class_type"] == "ExVideoCheckpointLoader")
    loader["inputs"]["exvideo_name"] = "gone.safetensors"
    with pytest.raises(ClientError, match=r"ExVideoCheckpointLoader.*gone\.safetensors"):
        finish(client, (prompt, page))


def test_an_unknown_format_is_named(client, image_to_video):
    small = {"num_frames": 2}
    with pytest.raises(ClientError, match=r"ExVideoSave.*mp4-h264"):
        finish(client, image_to_video(ExVideoConditioning=small, ExVideoSave={"format": "betamax"}))


@pytest.mark.parametrize(("during", "seed"), [("ExVideoSampler", 101), ("ExVideoDecode", 102), ("ExVideoSave", 103)])
def test_an_interrupt_stops_and_leaves_nothing(client, image_to_video, saved_files, during, seed):
    before = saved_files()
    prompt, page = image_to_video(ExVideoSampler={"steps": 3, "seed": seed})
    key = {value["class_type"]: number for number, value in prompt.items()}
    node, save = key[during], prompt[key["ExVideoSave"]]
    # Frames large enough that no machine has saved them before the interrupt arrives.
    scale = {"upscale_method": "bilinear", "width": 768, "height": 768, "crop": "disabled"}
    prompt["100"] = {"class_type": "ImageScale", "inputs": {"image": save["inputs"]["images"], **scale}}
    save["inputs"]["images"] = ["100", 0]
    interrupted = threading.Event()

    def on_event(kind, data):
        if kind == "progress" and data["node"] == node and not interrupted.is_set():
            interrupted.set()
            client.interrupt()

    prompt_id = client.queue(prompt, page)
    with pytest.raises(PromptCancelledError):
        client.follow(prompt_id, on_event)
    assert interrupted.is_set()
    assert saved_files() == before


@pytest.mark.parametrize(("during", "seed"), [("ExVideoSampler", 104), ("ExVideoDecode", 105)])
def test_an_interrupt_takes_effect_within_a_second(client, image_to_video, during, seed):
    """At the demo's size, where a step takes seconds: in the middle of a pass, not at its end."""
    size = {"width": 128, "height": 128, "num_frames": 128}
    prompt, page = image_to_video(ExVideoConditioning=size, ExVideoSampler={"steps": 2, "seed": seed})
    (node,) = (key for key, value in prompt.items() if value["class_type"] == during)
    times = []

    def on_event(kind, data):
        if kind == "progress" and data["node"] == node and not times:
            time.sleep(0.1)
            times.append(time.perf_counter())
            client.interrupt()

    prompt_id = client.queue(prompt, page)
    with pytest.raises(PromptCancelledError):
        client.follow(prompt_id, on_event)
    took = time.perf_counter() - times[0]
    print(f"\n{during}: cancelled {took:.2f} s after the interrupt")
    assert took < 1


@pytest.mark.parametrize("mode", ["RGBA", "L", "I;16", "P", "huge"])
def test_any_picture_works(client, image_to_video, tmp_path, mode):
    path = tmp_path / f"{mode.replace(';', '')}.png"
    colour = {"RGBA": (200, 10, 10, 90), "huge": (9, 80, 200)}.get(mode, 70)
    size = (4000, 3000) if mode == "huge" else (90, 70)
    Image.new("RGB" if mode == "huge" else mode, size, colour).save(path)
    history, _ = finish(client, image_to_video(path, ExVideoConditioning={"num_frames": 2}))
    assert len(outputs(history)) == 1


def test_a_text_named_png_ends_in_a_sentence(client, image_to_video, tmp_path):
    path = tmp_path / "text.png"
    path.write_text("no picture")
    with pytest.raises(ClientError, match="cannot identify image file"):
        finish(client, image_to_video(path))


def test_a_name_outside_the_output_folder_is_refused(client, image_to_video, saved_files, server):
    before = set(server.base.rglob("*.mp4"))
    small = {"num_frames": 2}
    with pytest.raises(ClientError, match="output folder"):
        finish(client, image_to_video(ExVideoConditioning=small, ExVideoSave={"filename_prefix": "../../escaped"}))
    assert set(server.base.rglob("*.mp4")) == before


def test_the_hosts_own_loader_and_sampler_work_on_our_model(client, image_to_video):
    """Load ExVideo Extension + Apply ExVideo on a MODEL, and the host's KSampler on the result."""
    prompt, page = image_to_video(ExVideoConditioning={"num_frames": 3})
    key = {node["class_type"]: number for number, node in prompt.items()}
    loader, sampler = key["ExVideoCheckpointLoader"], key["ExVideoSampler"]
    name = prompt[loader]["inputs"]["exvideo_name"]
    prompt["100"] = {"class_type": "ExVideoLoader", "inputs": {"exvideo_name": name}}
    # Applied a second time, at half strength: it replaces the first.
    apply = {"model": [loader, 0], "exvideo": ["100", 0], "strength": 0.5}
    prompt["101"] = {"class_type": "ExVideoApply", "inputs": apply}
    links = prompt[sampler]["inputs"]
    prompt[sampler] = {
        "class_type": "KSampler",
        "inputs": {
            "model": ["101", 0], "positive": links["positive"], "negative": links["negative"],
            "latent_image": links["latent"], "seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler",
            "scheduler": "karras", "denoise": 1.0,
        },
    }  # fmt: skip
    history, _ = finish(client, (prompt, page))
    assert len(outputs(history)) == 1


def test_an_extension_is_saved_listed_and_loaded_again(client, image_to_video, server):
    """Saved by a bare API client, then found by the loader under output/exvideo, then used."""
    names = {"exvideo_name": "exvideo_tiny_128f.safetensors"}
    prompt = {
        "1": {"class_type": "ExVideoLoader", "inputs": names},
        "2": {"class_type": "ExVideoSaveExtension", "inputs": {"exvideo": ["1", 0], "filename_prefix": "exvideo/mine"}},
    }
    history, _ = finish(client, (prompt, None))
    assert history["outputs"]["2"]["text"] == ["exvideo/mine_00001_.safetensors"]
    path = server.base / "output" / "exvideo" / "mine_00001_.safetensors"
    saved, original = load_file(path), load_file(server.base / "models" / "exvideo" / names["exvideo_name"])
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[key], original[key]) for key in saved)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["frames"] == "128"
    kept = json.loads(metadata["prompt"])
    kept["1"].pop("is_changed")  # the host's own note, for its cache
    assert kept == prompt
    prompt["2"]["inputs"]["filename_prefix"] = "mine"
    history, _ = finish(client, (prompt, None))
    assert history["outputs"]["2"]["text"] == ["mine_00001_.safetensors"]
    listed = server.get("/object_info/ExVideoLoader")["ExVideoLoader"]["input"]["required"]["exvideo_name"]
    assert path.name in str(listed)
    loader = {"ckpt_name": "exvideo_tiny_svd.safetensors", "exvideo_name": path.name}
    finish(client, image_to_video(ExVideoConditioning={"num_frames": 2}, ExVideoCheckpointLoader=loader))


def test_an_unknown_precision_is_named(client, saved_files):
    before = saved_files()
    prompt = {
        "1": {"class_type": "ExVideoLoader", "inputs": {"exvideo_name": "exvideo_tiny_128f.safetensors"}},
        "2": {
            "class_type": "ExVideoSaveExtension",
            "inputs": {"exvideo": ["1", 0], "filename_prefix": "x", "precision": "fp4"},
        },
    }
    with pytest.raises(ClientError, match=r"ExVideoSaveExtension.*fp16"):
        finish(client, (prompt, None))
    assert saved_files() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "dtype", "bound"), [("--force-fp16", "float16", 2e-2), ("--fp8_e4m3fn-unet", "float8_e4m3fn", 0.3)]
)
def test_precisions_of_the_command_line(start_server, image_to_video, client, server, argument, dtype, bound):
    """The same graph on a ComfyUI of another precision; latents by the host's own SaveLatent."""

    def latents(running, run):
        prompt, _ = image_to_video(ExVideoConditioning={"num_frames": 6}, ExVideoSampler={"steps": 2})
        (sampler,) = (key for key, node in prompt.items() if node["class_type"] == "ExVideoSampler")
        for key in [key for key, node in prompt.items() if node["class_type"] in ("ExVideoDecode", "ExVideoSave")]:
            del prompt[key]
        prompt["100"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "clip"}}
        (picture,) = (node for node in prompt.values() if node["class_type"] == "LoadImage")
        picture["inputs"]["image"] = run.upload_image(ROOT / "assets" / "photo.jpg")
        finish(run, (prompt, None))
        return load_file(sorted((running.base / "output").glob("clip_*.latent"))[-1])["latent_tensor"]

    exact = latents(server, client)
    with start_server(argument) as other, Client(other.url, other.alive) as run:
        got = latents(other, run)
        assert f"model weight dtype torch.{dtype}" in other.log.read_text()
    error = ((got - exact).norm() / exact.norm()).item()
    print(f"\n{argument}: relative error of the latents after 2 steps {error:.1e}")
    # Zero for half precision on a CPU, where the host stores weights in it, as their file does, but computes in single.
    assert error < bound


def test_help_and_translations_reach_the_page(server, object_info):
    for node_id in NODES:
        for page in (f"{node_id}.md", f"{node_id}/zh.md"):
            answer = requests.get(f"{server.url}/extensions/exvideo/docs/{page}", timeout=30)
            assert answer.ok, page
            assert len(answer.text) > 500, page
    chinese = server.get("/i18n")["zh"]["nodeDefs"]
    assert chinese.keys() >= NODES
    assert chinese["ExVideoApply"]["display_name"] != object_info["ExVideoApply"]["display_name"]


def test_the_workflows_are_listed_as_templates(server):
    shipped = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert set(server.get("/workflow_templates")["exvideo"]) == shipped


def test_what_a_person_should_know_is_shown_under_the_node(server, image_to_video):
    """Such as that an extension was forgotten: the page shows what is neither an error nor only in the log."""
    alone = {**TINY, "exvideo_name": "none (SVD alone)"}
    prompt, _ = image_to_video(ExVideoConditioning={"num_frames": 26}, ExVideoCheckpointLoader=alone)
    with contextlib.closing(
        websocket.create_connection(f"{server.url.replace('http', 'ws')}/ws?clientId=me")
    ) as socket:
        socket.settimeout(120)
        queued = {"prompt": prompt, "client_id": "me"}
        assert requests.post(f"{server.url}/prompt", json=queued, timeout=30).ok
        told = []
        while not (isinstance(raw := socket.recv(), str) and json.loads(raw)["type"] == "execution_success"):
            if isinstance(raw, bytes) and int.from_bytes(raw[:4], "big") == TEXT:
                told.append(raw[4:])
    length, (node, *_) = int.from_bytes(told[0][:4], "big"), told
    assert (node[4 : 4 + length], len(told)) == (b"4", 1)
    assert node[4 + length :].decode().startswith("ExVideo samples 26 frames with SVD alone, which knows 25. Choose")
