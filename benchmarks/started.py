"""The first minutes with the pack: what it adds to the start of ComfyUI, and how soon a dropped workflow is queued.

    python -m benchmarks.started

Seconds to import it and to list its nodes, after the host's own; seconds until a server answers that was started with
the pack or with another of one node; and on the page, in Chromium, seconds from dropping a workflow to its queueing.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dev.environment import ROOT, Environment
from dev.inside import host_path
from dev.models import under_real_names
from dev.page import CHROMIUM, Page
from dev.server import Server
from exvideo_core.tiny import write_tiny_model

TURNS = 5
PROGRAM = """
import asyncio, importlib, sys, time
sys.argv = sys.argv[:1]
sys.path.insert(0, {host!r})
import comfy.options
comfy.options.enable_args_parsing()
sys.argv.append("--cpu")
import nodes
asyncio.run(nodes.init_builtin_extra_nodes())
sys.path.insert(0, {root!r})
from dev.inside import become_host
start = time.perf_counter()
pack = become_host()
extension = asyncio.run(pack.comfy_entrypoint())
asyncio.run(extension.get_node_list())
print("seconds", time.perf_counter() - start)
"""
OTHER = """
class Nothing:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = (), "execute", "bench"

NODE_CLASS_MAPPINGS = {"BenchNothing": Nothing}
"""


def main() -> None:
    _say("import the pack and list its nodes", [_imported() for _ in range(TURNS)])
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder, "other")
        other.mkdir()
        (other / "__init__.py").write_text(OTHER, encoding="utf-8")
        packs = {"a server with the pack answers": ROOT, "a server without answers": other}
        started: dict[str, list[float]] = {name: [] for name in packs}
        # The first of each reads files that the others find in memory.
        for turn in range(TURNS + 1):
            for name, pack in packs.items():
                seconds = _started(Path(folder, f"base of {pack.name}"), pack)
                started[name] += [seconds] if turn else []
        for name, each in started.items():
            _say(name, each)
        if CHROMIUM:
            _say("a dropped workflow is queued", _queued(Path(folder, f"base of {ROOT.name}")))


def _say(what: str, seconds: list[float]) -> None:
    each = ", ".join(f"{s:.3f}" for s in sorted(seconds))
    print(f"{what}: {statistics.median(seconds):.3f} s, the median of {each}", flush=True)


def _imported() -> float:
    program = PROGRAM.format(host=str(host_path()), root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout.rpartition("seconds")[2])


def _server(base: Path, pack: Path) -> Server:
    base.mkdir(exist_ok=True)
    return Server(Environment(Path(sys.executable), host_path()), base, cpu=True, pack=pack)


def _started(base: Path, pack: Path) -> float:
    server = _server(base, pack)
    begun = time.perf_counter()
    with server:
        return time.perf_counter() - begun


def _queued(base: Path) -> list[float]:
    """From the drop to the event that says that it is running; the driver's wait for dialogs is in it."""
    models, seconds = base / "models", []
    write_tiny_model(models)
    under_real_names(models)
    shutil.copyfile(ROOT / "assets" / "photo.jpg", base / "input" / "example.png")
    small = {"ExVideoConditioning": {"width": 64, "height": 64, "num_frames": 2}, "ExVideoSampler": {"steps": 1}}
    with _server(base, ROOT) as server, Page(server.url) as page:
        for _ in range(TURNS):
            page.reload()
            begun = time.perf_counter()
            page.drop(ROOT / "workflows" / "image_to_video.json")
            page.set(small)
            page.press_run()
            page.until_seen("execution_start")
            seconds.append(time.perf_counter() - begun)
            page.until_seen("execution_success", "execution_error")
    return seconds


if __name__ == "__main__":
    main()
