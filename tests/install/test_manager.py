"""The pack under ComfyUI Manager's own command line: installed from a Git address, updated, uninstalled.

`python -m dev.test -m long tests/install` runs it: it fetches the Manager, and one package by the Manager.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from dev.environment import ROOT, Environment
from dev.inside import host_path
from dev.schemas import Source
from dev.server import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(os.name == "nt", reason="there the Manager leaves packages to its next start inside ComfyUI"),
]

MISSING = "imageio_ffmpeg"
"""The requirement that the Manager finds not installed: one without requirements of its own."""
UPDATED = "exvideo: a later state"
AUTHOR = ("-c", "user.name=author", "-c", "user.email=author@example.invalid", "-c", "commit.gpgsign=false")


def git(*words):
    done = subprocess.run(["git", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def site_packages(environment):
    (found,) = (path for path in environment.rglob("site-packages") if not path.parent.is_symlink())
    return found


def without_byte_code(**more):
    """Nothing is written into packages that were lent to us, nor into the tree that is compared."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **more}


def listing(folder):
    """What is in it. Of files the contents count, so that one changed in place is found too."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "/"
        for path in folder.rglob("*")
    }


@pytest.fixture
def repository(tmp_path):
    """The working tree as the one commit of a bare repository, as a Git server keeps it."""
    bare = tmp_path / "exvideo.git"
    git("init", "--quiet", "--bare", "--initial-branch=main", bare)
    of_tree = ("--git-dir", bare, "--work-tree", ROOT)
    git(*of_tree, "add", "--all")
    git(*of_tree, *AUTHOR, "commit", "--quiet", "--message=first")
    return bare


@pytest.fixture
def host(tmp_path):
    """A ComfyUI of our own, without anybody's models or packs."""
    comfyui = tmp_path / "ComfyUI"
    made = ("custom_nodes", "input", "models", "output", "temp", "user")
    not_copied = {*made, ".git", ".venv", "venv"}
    shutil.copytree(
        host_path(), comfyui, ignore=lambda folder, _: not_copied if Path(folder) == host_path() else {"__pycache__"}
    )
    for name in made:
        (comfyui / name).mkdir()
    return comfyui


@pytest.fixture
def python(tmp_path):
    """An environment with the Manager, for which all packages of ours count as installed, but for MISSING.

    They are linked, not copied: torch alone is gigabytes. pip leaves alone what stands outside its environment.
    """
    venv.create(tmp_path / "venv", with_pip=True)
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir()
    ours = {entry.name: entry for key in ("purelib", "platlib") for entry in Path(sysconfig.get_path(key)).iterdir()}
    for name, entry in ours.items():
        if not name.startswith((MISSING, "pip", "setuptools", "_distutils_hack", "__pycache__")):
            (borrowed / name).symlink_to(entry)
    (site_packages(tmp_path / "venv") / "borrowed.pth").write_text(f"{borrowed}\n", encoding="utf-8")
    python = tmp_path / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "install", "comfyui-manager"], env=without_byte_code(), check=True)
    return python


@pytest.fixture
def manager(python, host):
    """The Manager's command line. It ends with 0 whatever happens: only what it says tells."""

    def run(*words):
        done = subprocess.run(
            [python, "-m", "cm_cli", *words],
            env=without_byte_code(COMFYUI_PATH=str(host), COLUMNS="1000"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ERROR" not in done.stdout, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_manager_installs_updates_and_uninstalls_it(repository, host, python, manager, tmp_path):
    pack, mine = host / "custom_nodes" / "exvideo", host / "models" / "exvideo" / "mine.safetensors"
    site = site_packages(tmp_path / "venv")
    before, packages = listing(host), {path.name for path in site.iterdir()}

    # The Manager takes for an address only what names a machine, so file:///… is none to it.
    assert "[INSTALLED]" in manager("install", f"file://localhost{repository}")
    assert git("-C", pack, "log", "--format=%s") == "first"
    new = {path.name for path in site.iterdir()} - packages
    assert new
    assert all(name.startswith(MISSING) for name in new)

    def start():
        with Server(Environment(python, host), host, cpu=True, pack=pack) as server:
            nodes = server.get("/object_info")
        assert {key for key, node in nodes.items() if node["category"] == "ExVideo"} == {n.id for n in Source().nodes}
        assert git("-C", pack, "status", "--porcelain") == ""
        return server.log.read_text(encoding="utf-8")

    assert UPDATED not in start()
    mine.touch()
    # What a host leaves in the pack that was not kept from it.
    subprocess.run([sys.executable, "-m", "compileall", "-q", pack / "nodes"], check=True)
    assert [*pack.rglob("*.pyc")]

    author = tmp_path / "author"
    git("clone", "--quiet", repository, author)
    with (author / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(f"\nimport logging\n\nlogging.info({UPDATED!r})\n")
    git("-C", author, "rm", "--quiet", "CHANGELOG.md")
    git("-C", author, *AUTHOR, "commit", "--quiet", "--all", "--message=second")
    git("-C", author, "push", "--quiet")

    said = manager("update", "exvideo")
    assert "[  UPDATED  ]" in said
    assert "STASH" not in said
    assert git("-C", pack, "log", "--format=%s") == "second\nfirst"
    assert not (pack / "CHANGELOG.md").exists()
    assert UPDATED in start()
    assert "Up to date" in manager("update", "exvideo")

    assert "[UNINSTALLED]" in manager("uninstall", "exvideo")
    after = listing(host)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    of_the_test = {"server.log", "model_paths.yaml"}
    of_the_host = {"input/3d"}  # its Load3D makes this when asked for its inputs
    of_the_manager = {name for name in changed if (name + "/").startswith("user/__manager/")}
    # Models are their owner's: neither the pack nor the Manager may take them along.
    assert changed - of_the_test - of_the_host - of_the_manager == {"models/exvideo", "models/exvideo/mine.safetensors"}
    assert not [name for name in of_the_manager if "exvideo" in name]
