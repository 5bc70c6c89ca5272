"""From latents to files, one node after the other and as one stream."""

import json
import shutil
import threading

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from exvideo_core.batch.client import ClientError, PromptCancelledError, outputs
from exvideo_core.formats import FORMATS

FRAMES, MULTIPLIER = 11, 3


@pytest.fixture
def graph(image_to_video):
    """Sample a few frames; and the keys of the sampler and of the checkpoint loader, to connect more to."""

    def build(num_frames=FRAMES, seed=0, **save):
        prompt, _ = image_to_video(
            ExVideoConditioning={"num_frames": num_frames, "width": 64, "height": 72}, ExVideoSampler={"seed": seed}
        )
        key = {node["class_type"]: number for number, node in prompt.items()}
        prompt[key["ExVideoSave"]]["inputs"].update(save)
        return prompt, key

    return build


def render(key, **inputs):
    links = {"samples": [key["ExVideoSampler"], 0], "vae": [key["ExVideoCheckpointLoader"], 2]}
    defaults = {"fps": [key["ExVideoConditioning"], 3], "multiplier": 1, "window": 8, "overlap": 4}
    files = {"filename_prefix": "video/Render", "format": "mp4-h264", "crf": 19}
    return {"class_type": "ExVideoRender", "inputs": {**links, **defaults, **files, **inputs}}


def run(client, prompt, on_event=lambda kind, data: None):
    prompt_id = client.queue(prompt, {"nodes": []})
    client.follow(prompt_id, on_event)
    return client.history(prompt_id)


def pictures(folder):
    """Their pixels: the files differ by the graphs in them."""
    found = []
    for path in sorted(folder.glob("frame_*.png")):
        with Image.open(path) as picture:
            found.append((picture.mode, picture.size, picture.tobytes()))
    return found


@pytest.mark.parametrize("centred", [False, True])
def test_a_stream_is_frame_for_frame_what_three_nodes_make(client, graph, server, centred):
    prompt, key = graph(filename_prefix=f"three/{centred}", format="png")
    decode, save = key["ExVideoDecode"], prompt[key["ExVideoSave"]]
    prompt[decode]["inputs"]["centred_blend"] = centred
    fps = [key["ExVideoConditioning"], 3]
    between = {"images": [decode, 0], "multiplier": MULTIPLIER, "fps": fps}
    prompt["100"] = {"class_type": "ExVideoInterpolate", "inputs": between}
    save["inputs"] |= {"images": ["100", 0], "fps": ["100", 1]}
    to = {"filename_prefix": f"one/{centred}", "format": "png", "centred_blend": centred}
    prompt["101"] = render(key, multiplier=MULTIPLIER, **to)
    history = run(client, prompt)

    folders = [server.base / "output" / name for name in (f"three/{centred}_00001_", f"one/{centred}_00001_")]
    three, one = (pictures(folder) for folder in folders)
    assert len(three) == (FRAMES - 1) * MULTIPLIER + 1
    assert len(set(three)) >= FRAMES
    assert three == one
    with Image.open(folders[0] / "frame_00001.png") as first:
        assert (first.size, first.mode) == ((64, 72), "RGB")
    # The first picture stands for the folder; the node shows a small video.
    (saved,) = history["outputs"]["101"]["video"]
    assert (saved["subfolder"], saved["filename"]) == (f"one/{centred}_00001_", "frame_00001.png")
    (shown,) = history["outputs"]["101"]["images"]
    assert shown["type"] == "temp"
    assert shown["filename"].endswith(".mp4")


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_saved_listed_and_served(client, graph, server, tmp_path, format):
    prompt, _ = graph(5, filename_prefix=f"formats/a 'name' {format} ü猫", format=format)
    history = run(client, prompt)
    listed = {item.filename: item for item in outputs(history)}
    (key,) = (node for node, entry in prompt.items() if entry["class_type"] == "ExVideoSave")
    result = history["outputs"][key]
    (saved,) = result.get("video", result["images"])
    assert saved["type"] == "output"
    path = server.base / "output" / saved["subfolder"] / saved["filename"]
    assert path.stat().st_size > 100
    # What the page shows can be fetched, too.
    (shown,) = result["images"]
    client.download(listed[shown["filename"]], tmp_path / "shown")
    assert (tmp_path / "shown").stat().st_size > 100
    assert result["animated"] == [True]


def test_latents_are_kept_first_and_can_be_rendered_later(client, graph, server):
    prompt, key = graph(filename_prefix="kept/straight", format="png")
    prompt["100"] = render(key, filename_prefix="kept/clip", format="png", keep_latents="always")
    history = run(client, prompt)
    assert history["outputs"]["100"]["latents"] == [
        {"filename": "clip_00001_.latent", "subfolder": "kept", "type": "output"}
    ]
    output = server.base / "output" / "kept"
    kept = output / "clip_00001_.latent"
    assert load_file(kept)["latent_tensor"].shape == (FRAMES, 4, 9, 8)

    # A program may say yes where a person says always.
    prompt["100"] = render(key, filename_prefix="kept/yes", keep_latents=True)
    run(client, prompt)
    assert (output / "yes_00001_.latent").is_file()

    # As the README says: into the input folder, then the host's own Load Latent.
    shutil.copy(kept, server.base / "input")
    loader = prompt[key["ExVideoCheckpointLoader"]]
    later = {
        "1": loader,
        "2": {"class_type": "LoadLatent", "inputs": {"latent": kept.name}},
        "3": render({"ExVideoSampler": "2", "ExVideoCheckpointLoader": "1", "ExVideoConditioning": ""}, fps=30.0,
                    filename_prefix="kept/later", format="png"),
    }  # fmt: skip
    run(client, later)
    folders = [next(output.glob(f"{name}_0000?_")) for name in ("clip", "later", "straight")]
    first, *others = (pictures(folder) for folder in folders)
    assert len(first) == FRAMES
    assert others == [first, first]


def test_latents_lie_beside_the_video_under_its_number(client, graph, server):
    for number in (1, 2):
        prompt, key = graph(3, seed=number)
        prompt["100"] = render(key, filename_prefix="sized/%width%x%height%/clip", keep_latents="always")
        run(client, prompt)
        names = {path.name for path in (server.base / "output" / "sized" / "64x72").iterdir()}
        assert {f"clip_0000{number}_.latent", f"clip_0000{number}_.mp4"} <= names
    assert len(names) == 4


def test_long_names_have_a_preview_too(client, graph, server):
    prefix = "/".join([40 * "猫"] * 3)
    prompt, key = graph(2, filename_prefix=prefix, format="gif")
    result = run(client, prompt)["outputs"][key["ExVideoSave"]]
    (shown,) = result["images"]
    assert (server.base / "temp" / shown["filename"]).stat().st_size > 100


def test_short_clips_keep_no_latents_unless_asked(client, graph, server):
    prompt, key = graph(3)
    prompt["100"] = render(key, filename_prefix="short/clip")
    run(client, prompt)
    assert [path.name for path in (server.base / "output" / "short").iterdir()] == ["clip_00001_.mp4"]


def test_a_cancelled_stream_leaves_no_video(client, graph, saved_files):
    before = saved_files()
    prompt, key = graph(128, seed=201)
    del prompt[key["ExVideoSave"]], prompt[key["ExVideoDecode"]]
    prompt["100"] = render(key, keep_latents="always", filename_prefix="cancelled/clip")
    cancelled = threading.Event()

    def on_event(kind, data):
        if kind == "progress" and data["node"] == "100" and data["value"] > 10 and not cancelled.is_set():
            cancelled.set()
            client.interrupt()

    with pytest.raises(PromptCancelledError):
        run(client, prompt, on_event)
    assert cancelled.is_set()
    assert [path.name for path in saved_files() - before] == ["clip_00001_.latent"]


def test_the_file_says_the_frame_rate_that_was_conditioned_times_the_multiplier(client, graph, server):
    import av

    prompt, key = graph(4)
    prompt[key["ExVideoConditioning"]]["inputs"]["fps"] = 12
    prompt["100"] = render(key, multiplier=4, filename_prefix="rate/clip")
    run(client, prompt)
    with av.open(str(server.base / "output" / "rate" / "clip_00001_.mp4")) as container:
        (stream,) = container.streams
        assert float(stream.average_rate) == 48
        assert stream.frames == 13
        assert json.loads(container.metadata["workflow"]) == {"nodes": []}
        assert json.loads(container.metadata["prompt"])["100"]["class_type"] == "ExVideoRender"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"format": "betamax"}, "mp4-h264"),
        ({"keep_latents": "yes"}, "auto, always, never"),
        ({"filename_prefix": "wait..."}, "two dots"),
        ({"fps": 900.0, "multiplier": 16}, "0.01 to 1000 frames a second"),
        ({"overlap": 8, "keep_latents": "always"}, "overlap = 8"),
        ({"filename_prefix": "../../escaped"}, "output folder"),
        ({"filename_prefix": "/escaped"}, "output folder"),
        ({"filename_prefix": "{base}/output/video/inside"}, "a full path"),
        ({"filename_prefix": "C:\\video"}, "a full path"),
        ({"filename_prefix": "a\0b"}, "No file can be called"),
        ({"filename_prefix": "video/NUL"}, "No file can be called"),
        ({"filename_prefix": ""}, "No file can be called"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(client, graph, server, saved_files, inputs, message):
    before = saved_files()
    if "filename_prefix" in inputs:
        inputs = {"filename_prefix": inputs["filename_prefix"].replace("{base}", str(server.base))}
    prompt, key = graph(2)
    del prompt[key["ExVideoSave"]], prompt[key["ExVideoDecode"]]
    prompt["100"] = render(key, **inputs)
    with pytest.raises(ClientError, match=f"ExVideoRender.*{message}"):
        run(client, prompt)
    assert saved_files() == before


def test_frames_of_another_node_and_of_odd_size_are_saved(client, graph, server):
    prompt, key = graph(2, filename_prefix="odd/frames", format="png")
    save = prompt[key["ExVideoSave"]]
    red = {"width": 33, "height": 17, "batch_size": 2, "color": 0xFF0000}
    prompt["100"] = {"class_type": "EmptyImage", "inputs": red}
    save["inputs"]["images"] = ["100", 0]
    run(client, prompt)
    frames = pictures(server.base / "output" / "odd" / "frames_00001_")
    assert len(frames) == 2
    with Image.open(server.base / "output" / "odd" / "frames_00001_" / "frame_00001.png") as picture:
        assert picture.size == (33, 17)
        assert torch.tensor(list(picture.getdata())).unique(dim=0).tolist() == [[255, 0, 0]]
