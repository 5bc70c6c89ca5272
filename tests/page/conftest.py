"""A server whose model folders hold tiny models under the names of the real ones, and a browser on its page."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dev.environment import ROOT, Environment
from dev.models import PAINTER, under_real_names
from dev.page import FRONTEND, Page
from dev.server import Server
from dev.sheets import MODELS
from exvideo_core.export import save_video
from exvideo_core.tiny import write_tiny_model

ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
HOST = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    models = base / "models"
    write_tiny_model(models)
    under_real_names(models)
    # In a process of its own: it takes a ComfyUI to write.
    painter = models / MODELS[PAINTER][1] / PAINTER
    subprocess.run([sys.executable, "-P", "-m", "dev.painter", str(painter)], cwd=ROOT, env=ENV, check=True)
    videos = base / "input" / "videos"
    videos.mkdir(parents=True)
    # ComfyUI brings a picture of this name; a base folder of one's own has none.
    shutil.copyfile(ROOT / "assets" / "photo.jpg", base / "input" / "example.png")
    for path in (base / "input" / "video.mp4", videos / "1.mp4", videos / "2.mp4"):
        start = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(len(path.parts)))
        save_video(torch.cat([start.roll(i, 2) for i in range(12)]), path, 30)
    page = ("--front-end-root", FRONTEND) if FRONTEND else ()
    with Server(Environment(Path(sys.executable), HOST), base, cpu=True, extra_args=page) as running:
        yield running


@pytest.fixture(scope="session")
def opened(server):
    with Page(server.url) as page:
        yield page


@pytest.fixture
def page(opened):
    """One page for many tests, whole again for the next one if the browser crashed in one."""
    opened.revive()
    return opened
