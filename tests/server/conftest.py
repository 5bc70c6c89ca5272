"""A real server with the tiny model, for the whole session."""

import json
import os
import sys
from pathlib import Path

import pytest

from dev.environment import ROOT, Environment
from dev.server import Server
from dev.workflow import override_api, override_ui
from exvideo_core.batch.client import Client
from exvideo_core.tiny import write_tiny_model

HOST = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI")
TINY = {"ckpt_name": "exvideo_tiny_svd.safetensors", "exvideo_name": "exvideo_tiny_128f.safetensors"}


@pytest.fixture(scope="session")
def start_server(tmp_path_factory):
    """Start a ComfyUI on the CPU with the tiny model, with more arguments where given."""

    def start(*arguments):
        base = tmp_path_factory.mktemp("comfyui")
        write_tiny_model(base / "models")
        return Server(Environment(Path(sys.executable), HOST), base, cpu=True, extra_args=arguments)

    return start


@pytest.fixture(scope="session")
def server(start_server):
    with start_server() as running:
        yield running


@pytest.fixture
def client(server):
    with Client(server.url, server.alive) as client:
        yield client


@pytest.fixture(scope="session")
def object_info(server):
    return server.get("/object_info")


@pytest.fixture
def image_to_video(client, object_info):
    """The shipped workflow in both forms, on the tiny model, small: overrides by node class go on top."""

    def build(picture=ROOT / "assets" / "photo.jpg", **overrides):
        inputs = {
            "LoadImage": {"image": client.upload_image(picture)},
            "ExVideoCheckpointLoader": TINY,
            "ExVideoConditioning": {"width": 64, "height": 64, **overrides.pop("ExVideoConditioning", {})},
            "ExVideoSampler": {"steps": 1, **overrides.pop("ExVideoSampler", {})},
            **overrides,
        }
        api, ui = (
            json.loads((ROOT / "workflows" / name).read_text(encoding="utf-8"))
            for name in ("api/image_to_video.json", "image_to_video.json")
        )
        return override_api(api, inputs), override_ui(ui, inputs, object_info)

    return build


@pytest.fixture
def saved_files(server):
    """All files under the output folder, hidden ones included."""
    return lambda: {path for path in (server.base / "output").rglob("*") if path.is_file()}
