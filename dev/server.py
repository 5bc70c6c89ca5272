"""A real ComfyUI without a browser: started on a folder of its own, with this pack in it, and surely stopped."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dev.environment import ROOT, VENV, Environment
from dev.errors import DevError

PACK = "exvideo"
START_TIMEOUT = 180.0
STOP_TIMEOUT = 3.0
LOG_TAIL = 25
# Beside our environment, as in the Makefile: a host that was lent to us is left as it was, and yet no start compiles
# again what all of them import.
BYTE_CODE = {"PYTHONPYCACHEPREFIX": str(VENV / "pycache"), "PYTHONDONTWRITEBYTECODE": ""}
# The proxy of the environment is for the internet, never for our own machine.
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(DevError):
    """ComfyUI could not be started, or it died."""


class Server:
    """ComfyUI on `base` (its models, input, output, …), with the pack linked into it. Use it in a `with` statement.

    The pack is this checkout, linked as `exvideo`, or another folder, linked by its own name.
    `cpu=None` takes the CPU when torch sees no accelerator, `port=None` takes a free one. The host's own folder is
    only read: what stands in its `models` is found too.
    """

    def __init__(
        self,
        environment: Environment,
        base: Path,
        *,
        port: int | None = None,
        extra_args: Sequence[str] = (),
        cpu: bool | None = None,
        pack: Path = ROOT,
    ) -> None:
        if environment.comfyui is None:
            raise ServerError("A ComfyUI folder is needed to start a server, the environment was made without one.")
        self.python = environment.python
        self.comfyui = environment.comfyui
        self.base = Path(base).resolve()
        self.port = port
        self.extra_args = tuple(extra_args)
        self.cpu = cpu
        self.pack = pack
        self.pack_name = PACK if pack == ROOT else pack.name
        self.log = self.base / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:  # Ctrl-C while it starts must not leave it behind either
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def group(self) -> int | None:
        """The process group that it and all it starts are in; None while it does not run."""
        return None if self._process is None else self._process.pid

    def alive(self) -> bool:
        """Whether the process runs (it may still be too busy to answer)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Prepare the folder, start, and wait until it answers and has the pack's nodes."""
        self.port = free_port() if self.port is None else _check_port(self.port)
        _prepare(self.base, self.pack, self.pack_name)
        cpu = self.cpu if self.cpu is not None else not _has_accelerator(self.python)
        command = [str(self.python), "main.py", *self._arguments(), *(["--cpu"] if cpu else []), *self.extra_args]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.comfyui,
                env={**os.environ, **BYTE_CODE, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **_own_group(),
            )
        self._wait_until_ready()
        self._check_pack()

    def stop(self) -> None:
        """End it and everything it started, within a few seconds. Calling it again does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        if sys.platform == "win32":
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
            process.wait(STOP_TIMEOUT)
            return
        _signal_group(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also after a clean end: what it started (ffmpeg, say) may outlive it.
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()

    def get(self, path: str, timeout: float = 30.0) -> Any:
        """The JSON at a path of the server."""
        with _LOCAL.open(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def tail(self, lines: int = LOG_TAIL) -> str:
        """The last lines of the log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _arguments(self) -> list[str]:
        return [
            *("--listen", "127.0.0.1"),
            *("--port", str(self.port)),
            *("--base-directory", str(self.base)),
            *("--extra-model-paths-config", str(_write_model_paths(self.comfyui, self.base))),
            # In memory: a file would stand in the host's folder, and belong to one version of it.
            *("--database-url", "sqlite:///:memory:"),
            "--disable-auto-launch",
        ]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if not self.alive():
                raise ServerError(
                    f"{self.tail()}\nComfyUI ended while it started; its last lines are above ({self.log})."
                )
            try:
                self.get("/system_stats", timeout=5)
                return
            except (OSError, ValueError):  # not listening yet, or not done answering
                time.sleep(0.2)
        raise ServerError(
            f"{self.tail()}\nComfyUI should answer within {START_TIMEOUT:.0f} s and did not; "
            f"its last lines are above ({self.log})."
        )

    def _check_pack(self) -> None:
        nodes = self.get("/object_info", timeout=60).values()
        if not any(node.get("python_module") == f"custom_nodes.{self.pack_name}" for node in nodes):
            raise ServerError(
                f"{self._pack_lines()}\nComfyUI started without the pack's nodes: see above, or all of {self.log}."
            )

    def _pack_lines(self) -> str:
        """The part of the log that tells why the pack was not loaded: its traceback, to the last mention of it."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        place = os.path.join("custom_nodes", self.pack_name)
        mentions = [at for at, line in enumerate(lines) if place in line]
        if not mentions:
            return self.tail()
        starts = [at for at, line in enumerate(lines[: mentions[0] + 1]) if line.startswith("Traceback")]
        in_trace = lines[mentions[0]].startswith(" ")
        first = starts[-1] if starts and in_trace else mentions[0]
        return "\n".join(lines[first : mentions[-1] + 1][-2 * LOG_TAIL :])


def _prepare(base: Path, pack: Path, name_of_pack: str) -> None:
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / name_of_pack
    if link.exists() and link.samefile(pack):
        return
    if link.is_symlink():
        link.unlink()  # of a checkout that has moved
    elif link.exists():
        raise ServerError(f"{link} should be a link to {pack}, it is something else: move it away.")
    try:
        link.symlink_to(pack, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        # Symbolic links need a privilege on Windows, junctions do not.
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(pack)], check=True, capture_output=True)


def _write_model_paths(comfyui: Path, base: Path) -> Path:
    """Name the host's model folders, which `--base-directory` hides.

    Written as JSON, which is YAML that needs no quoting rules of our own.
    """
    models = comfyui / "models"
    kinds = sorted(folder.name for folder in models.iterdir() if folder.is_dir()) if models.is_dir() else []
    config = {"host": {"base_path": str(models), **{kind: kind for kind in kinds}}}
    path = base / "model_paths.yaml"
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return path


def free_port() -> int:
    """One that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _check_port(port: int) -> int:
    if not 1 <= port <= 65535:
        raise ServerError(f"A port is a number from 1 to 65535, got {port}.")
    with socket.socket() as probe:
        if sys.platform != "win32":  # there it would mean the opposite: share the port with whoever has it
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServerError(
                f"Port {port} cannot be used ({error.strerror}): choose another, or none for a free one."
            ) from error
    return port


def _has_accelerator(python: Path) -> bool:
    code = (
        "import sys, torch; "
        "sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()))"
    )
    return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0


def _own_group() -> dict[str, Any]:
    """Popen options: a group that can be ended as a whole, and that Ctrl-C in our terminal does not reach."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    if sys.platform != "linux":
        return {"start_new_session": True}
    return {"start_new_session": True, "preexec_fn": _die_with(os.getpid())}


def _die_with(parent: int) -> Callable[[], None]:
    """For the child on Linux: be killed when the parent dies, however that happens.

    The kernel means the thread that started it, so start a server from one that lives as long as the server should.
    """
    set_death_signal = ctypes.CDLL(None).prctl  # looked up before the fork: after it, only safe calls are left
    option, kill = 1, 9  # PR_SET_PDEATHSIG and SIGKILL, by the numbers they have on every Linux

    def prepare() -> None:
        set_death_signal(option, kill)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)

    return prepare


def _signal_group(group: int, number: int) -> None:
    if sys.platform != "win32":
        # Nobody left. (macOS gives the second when only an ended process is.)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
