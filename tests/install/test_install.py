"""The pack as people get it: out of the registry's archive, in folders of any name, beside what is installed already.

`python -m dev.test -m long tests/install` also runs the registry's own tool, which takes minutes to install.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
import requests

from dev.environment import ROOT, Environment
from dev.inside import host_path
from dev.schemas import Source
from dev.server import Server, ServerError
from dev.workflow import override_api
from exvideo_core.batch.client import Client, outputs
from exvideo_core.tiny import CHECKPOINT, EXTENSION, write_tiny_model

pytestmark = pytest.mark.slow

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def tracked(*options):
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split("\0")) - {""}


def copy(files, folder):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


@pytest.fixture(scope="module")
def archived():
    """What the registry's archive holds: all that git tracks but what .comfyignore names."""
    if not (ROOT / ".git").exists():
        pytest.skip("only git knows which files belong to the pack")
    return tracked() - tracked("--cached", "--ignored", "--exclude-from=.comfyignore")


@pytest.fixture
def read_only(archived, tmp_path):
    """The archive in a folder of some name, where nobody may write."""

    def unpack(name):
        pack = tmp_path / "the packs" / name
        copy(archived, pack)
        for path in (pack, *pack.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        return pack

    yield unpack
    for path in (tmp_path / "the packs").rglob("*"):
        if path.is_dir():
            path.chmod(0o755)


@pytest.mark.parametrize("name", ["exvideo", "Ex Vidéo 视频"])
def test_the_archive_works_from_any_folder_and_writes_nothing_there(archived, read_only, tmp_path, name):
    pack, base = read_only(name), tmp_path / f"base of {name}"
    write_tiny_model(base / "models")
    environment = Environment(Path(sys.executable), host_path())
    with Server(environment, base, cpu=True, pack=pack) as server, Client(server.url, server.alive) as client:
        ours = {key for key, node in server.get("/object_info").items() if node["category"] == "ExVideo"}
        assert ours == {node.id for node in Source().nodes}
        shipped = {path.stem for path in (ROOT / "workflows").glob("*.json")}
        assert set(server.get("/workflow_templates")[name]) == shipped
        if name == quote(name):  # aiohttp finds no static files of the host behind another name
            help_page = requests.get(f"{server.url}/extensions/{name}/docs/ExVideoApply.md", timeout=30)
            assert help_page.content == (pack / "web" / "docs" / "ExVideoApply.md").read_bytes()

        prompt = override_api(
            json.loads((pack / "workflows" / "api" / "image_to_video.json").read_text(encoding="utf-8")),
            {
                "LoadImage": {"image": client.upload_image(ROOT / "assets" / "photo.jpg")},
                "ExVideoCheckpointLoader": {"ckpt_name": Path(CHECKPOINT).name, "exvideo_name": Path(EXTENSION).name},
                "ExVideoConditioning": {"width": 64, "height": 64, "num_frames": 2},
                "ExVideoSampler": {"steps": 1},
            },
        )
        prompt["100"] = {"class_type": "ExVideoDoctor", "inputs": {}}
        prompt_id = client.queue(prompt)
        client.follow(prompt_id, lambda kind, data: None)
        history = client.history(prompt_id)
        assert len(outputs(history)) == 1
        assert "Nothing is wrong." in history["outputs"]["100"]["text"][0]
    # Where we are root, that may write anywhere, this shows what the folder's mode does not.
    assert {path.relative_to(pack).as_posix() for path in pack.rglob("*") if path.is_file()} == archived


def test_an_old_host_is_told_so_in_one_sentence(tmp_path):
    old = tmp_path / "ComfyUI"
    large = {"models", "input", "output", "user"}
    shutil.copytree(host_path(), old, ignore=lambda folder, _: large if Path(folder) == host_path() else ())
    (old / "comfyui_version.py").write_text('__version__ = "0.3.74"\n')
    server = Server(Environment(Path(sys.executable), old), tmp_path / "base", cpu=True)
    with pytest.raises(ServerError, match=r"ExVideo needs ComfyUI 0\.3\.75 or newer, this is 0\.3\.74: please update"):
        server.__enter__()
    log = server.log.read_text(encoding="utf-8")
    assert log.count("ExVideo needs") == 1
    assert "Traceback" not in log


@pytest.mark.parametrize(
    "installed",
    [
        "torch 2.9.1, numpy 2.3.4, pillow 12.0.0, scipy 1.16.3, kornia 0.8.2, einops 0.8.1, safetensors 0.6.2",
        "torch 2.2.0, numpy 1.23.5, pillow 9.5.0, scipy 1.9.3, kornia 0.7.1, einops 0.6.0, safetensors 0.4.2",
        "torch 2.3.0, numpy 1.26.4, pillow 10.1.0, scipy 1.11.4, kornia 0.7.1, einops 0.6.0, safetensors 0.4.2",
    ],
)
def test_the_requirements_change_no_installed_version(tmp_path, installed):
    """What pip would do, on hosts of different age, with what ComfyUI's own requirements bring. It decides by what is
    noted of packages, so notes are enough."""
    venv.create(tmp_path)
    (site,) = (path for path in tmp_path.rglob("site-packages") if not path.is_symlink())
    versions = dict(words.split() for words in installed.split(", "))
    for name, version in versions.items():
        note = site / f"{name}-{version}.dist-info"
        note.mkdir()
        (note / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    python = next(path for path in (tmp_path / "bin" / "python", tmp_path / "Scripts" / "python.exe") if path.exists())
    dry_run = ("--python", str(python), "install", "--dry-run", "--report", "-", "-r", str(ROOT / "requirements.txt"))
    done = subprocess.run([*PIP, *dry_run], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    new = {item["metadata"]["name"].lower() for item in json.loads(done.stdout)["install"]}
    assert "imageio-ffmpeg" in new
    assert not new & set(versions)


def test_pip_installs_an_extra(archived, tmp_path):
    """What each extra names is all that comes."""
    copy(archived, tmp_path / "pack")
    done = subprocess.run(
        [*PIP, "install", "--dry-run", "--no-deps", "--report", "-", ".[batch]"],
        cwd=tmp_path / "pack", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["install"]
    needed = found["metadata"]["requires_dist"]
    assert {text.split(";")[0].strip() for text in needed if "batch" in text} == {"requests", "websocket-client"}


@pytest.mark.long
def test_the_registrys_tool_validates_and_packs_the_same(archived, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([scripts / "python", "-m", "pip", "install", "--quiet", "comfy-cli"], check=True)
    checkout = tmp_path / "checkout"
    copy(tracked(), checkout)
    # A home of its own: the tool keeps settings there.
    env = {**os.environ, "HOME": str(tmp_path), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    for command in (
        ["git", "init", "--quiet"],
        ["git", "add", "--all", "--force"],
        ["comfy", "--skip-prompt", "node", "validate"],
        ["comfy", "--skip-prompt", "node", "pack"],
    ):
        done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(checkout / "node.zip") as archive:
        assert {name for name in archive.namelist() if not name.endswith("/")} == archived
