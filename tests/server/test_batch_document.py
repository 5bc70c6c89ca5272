"""The examples of docs/batch.md, run as they stand but for the address, on the workflow with the tiny model."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from dev.environment import ROOT
from exvideo_core.batch.client import ClientError
from tests.server.test_batch import draw, frames

EXAMPLES = re.findall(
    r"^```(sh|python)\n(.*?)^```", (ROOT / "docs" / "batch.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)
MAKES = ["video.mp4", None, "by_python.mp4", "videos/holiday/beach.mp4"]
"""What each leaves behind; the second only prints an address."""


@pytest.fixture
def folder(tmp_path, image_to_video):
    """What the examples read, under the names that they use."""
    size = {"width": 64, "height": 64, "num_frames": 2}
    prompt, _ = image_to_video(ExVideoConditioning=size)
    (tmp_path / "workflows" / "api").mkdir(parents=True)
    (tmp_path / "workflows" / "api" / "image_to_video.json").write_text(json.dumps(prompt), encoding="utf-8")
    (tmp_path / "assets").mkdir()
    shutil.copy(ROOT / "assets" / "photo.jpg", tmp_path / "assets")
    draw(tmp_path / "holiday" / "beach.png")
    return tmp_path


@pytest.mark.parametrize(("kind", "text", "makes"), [(*e, m) for e, m in zip(EXAMPLES, MAKES, strict=True)])
def test_an_example_works(server, folder, kind, text, makes):
    if text.startswith("comfy ") and not shutil.which("comfy"):
        pytest.skip("comfy-cli is not installed")
    text = text.replace("8188", str(server.port))
    command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euc", text]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), "PATH": path}
    done = subprocess.run(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if makes:
        assert frames(folder / makes) == 2
    else:
        address = re.search(r"http://\S+?\.mp4[^\s\"]*", done.stdout)[0]
        assert requests.get(address, timeout=30).ok


def test_what_the_document_says_of_the_servers_answers(server, client, image_to_video):
    """Refused, failed, and the list of jobs, which this version has or has not."""
    prompt, _ = image_to_video(ExVideoConditioning={"num_frames": 2})
    oldest = server.get("/system_stats")["system"]["comfyui_version"] == "0.3.75"
    assert requests.get(f"{server.url}/api/jobs", timeout=30).status_code == (404 if oldest else 200)

    prompt["4"]["inputs"]["steps"] = -1
    refused = requests.post(f"{server.url}/prompt", json={"prompt": prompt}, timeout=30)
    assert refused.status_code == 400
    (error,) = refused.json()["node_errors"]["4"]["errors"]
    assert refused.json()["node_errors"]["4"]["class_type"] == "ExVideoSampler"
    assert {"message", "details"} <= error.keys()

    prompt["4"]["inputs"]["steps"] = 1
    prompt["6"]["inputs"]["filename_prefix"] = "../outside"
    prompt_id = client.queue(prompt)
    with pytest.raises(ClientError):
        client.follow(prompt_id, lambda kind, data: None)
    status = client.history(prompt_id)["status"]
    events = dict(status["messages"])
    assert status["status_str"] == "error"
    assert events["execution_error"]["node_id"] == "6"
    assert "output folder" in events["execution_error"]["exception_message"]


@pytest.mark.parametrize(("suffix", "key", "kind"), [("mp4-h264", "images", "output"), ("mov-prores", "video", "temp")])
def test_files_are_listed_where_the_document_says(client, image_to_video, suffix, key, kind):
    prompt, _ = image_to_video(ExVideoConditioning={"num_frames": 2}, ExVideoSave={"format": suffix})
    prompt_id = client.queue(prompt)
    client.follow(prompt_id, lambda kind, data: None)
    listed = client.history(prompt_id)["outputs"]["6"]
    assert listed["images"][0]["type"] == kind
    assert listed[key][0]["type"] == "output"
    assert listed["animated"] == [True]
