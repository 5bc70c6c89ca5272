"""Saving a video: time, size at equal quality, and memory, beside ComfyUI's own node and VideoHelperSuite's.

    python -m benchmarks.saved [--frames 1000] [--vhs FOLDER]

Each saver on a server of its own, which first makes the frames (natural texture under a pan, 256×256): the time is
that of the node, the memory what the server and its children reside in beyond what it had when the frames were made.
Ours is run at several qualities; the one whose SSIM is nearest to another saver's is what that is compared with.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import imageio_ffmpeg
import torch
from kornia.metrics import ssim

from benchmarks.motion import SIDE, pan
from benchmarks.own_process import resident
from dev.environment import HOST, Environment, is_active
from dev.server import Server
from exvideo_core.batch.client import Client, outputs

FPS = 30.0
FRAMES_NODE = """
import sys
sys.path.insert(0, {root!r})

class BenchFrames:
    INPUT_TYPES = classmethod(lambda cls: {{"required": {{"count": ("INT", {{"default": 8, "max": 100000}})}}}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "bench"

    def make(self, count):
        import torch
        from benchmarks.motion import SIDE, pan
        frames = torch.empty(count, SIDE, SIDE, 3)
        for number in range(count):
            frames[number] = pan(number % 24)
        return (frames,)

NODE_CLASS_MAPPINGS = {{"BenchFrames": BenchFrames}}
"""


class Saver(NamedTuple):
    """A node that saves frames: its id, its inputs but for the frames, and what has to stand between."""

    node: str
    inputs: dict[str, Any]
    images: str = "images"
    pack: Path | None = None


class Saved(NamedTuple):
    seconds: float
    megabytes: float
    ssim: float
    memory: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saved")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--vhs", type=Path, help="a checkout of ComfyUI-VideoHelperSuite")
    arguments = parser.parse_args()
    assert is_active(), "run it with .venv's Python"
    savers = {f"Save ExVideo, crf {crf}": Saver("ExVideoSave", _ours(crf)) for crf in (17, 19, 21, 23, 25)}
    savers["ComfyUI's SaveVideo"] = Saver("SaveVideo", {"filename_prefix": "clip", "format": "mp4", "codec": "h264"})
    if arguments.vhs:
        given = {"frame_rate": FPS, "loop_count": 0, "filename_prefix": "clip", "format": "video/h264-mp4", "crf": 19}
        rest = {"pix_fmt": "yuv420p", "pingpong": False, "save_output": True, "save_metadata": True}
        inputs = {**given, **rest, "trim_to_audio": False}
        savers["VideoHelperSuite, crf 19"] = Saver("VHS_VideoCombine", inputs, pack=arguments.vhs)
    print(f"{arguments.frames} frames of {SIDE}×{SIDE}")
    print("| saver | seconds | frames a second | MB | SSIM | memory, MiB |\n|---|---|---|---|---|---|")
    for name, saver in savers.items():
        saved = measured(saver, arguments.frames)
        rate = arguments.frames / saved.seconds
        numbers = f"{saved.seconds:.1f} | {rate:.0f} | {saved.megabytes:.2f} | {saved.ssim:.4f} | {saved.memory:.0f}"
        print(f"| {name} | {numbers} |", flush=True)


def _ours(crf: int) -> dict[str, Any]:
    return {"fps": FPS, "filename_prefix": "clip", "format": "mp4-h264", "crf": crf}


def measured(saver: Saver, frames: int) -> Saved:
    """Save on a server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        packs = base / "custom_nodes"
        packs.mkdir()
        root = str(Path(__file__).parents[1])
        (packs / "bench_frames.py").write_text(FRAMES_NODE.format(root=root), encoding="utf-8")
        if saver.pack:
            shutil.copytree(saver.pack, packs / "vhs")
        environment = Environment(Path(sys.executable), HOST)
        with Server(environment, base, cpu=True) as server, Client(server.url, server.alive) as client:
            make: dict[str, Any] = {"1": {"class_type": "BenchFrames", "inputs": {"count": frames}}}
            make["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
            make["3"] = {"class_type": "ImageFromBatch", "inputs": {"image": ["1", 0], "batch_index": 0, "length": 1}}
            client.follow(client.queue(make), lambda kind, data: None)
            before = resident(server.group)
            memory = Memory(lambda: resident(server.group))
            prompt = {"1": make["1"], "9": {"class_type": saver.node, "inputs": dict(saver.inputs)}}
            if saver.node == "SaveVideo":
                prompt["8"] = {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": FPS}}
                prompt["9"]["inputs"]["video"] = ["8", 0]
            else:
                prompt["9"]["inputs"][saver.images] = ["1", 0]
            with memory:
                begun = time.perf_counter()
                prompt_id = client.queue(prompt)
                client.follow(prompt_id, lambda kind, data: None)
                seconds = time.perf_counter() - begun
            path = next(path for path in (base / "output").rglob("*.mp4"))
            assert outputs(client.history(prompt_id)) or path
            return Saved(seconds, path.stat().st_size / 1e6, _ssim(path), (memory.most - before) / 2**20)


class Memory:
    """The most of something, looked at all the time."""

    def __init__(self, look: Callable[[], int]):
        self.most, self._look, self._done = 0, look, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.most = max(self.most, self._look())


def _ssim(path: Path) -> float:
    """Of every 16th frame, against what was saved."""
    reader = imageio_ffmpeg.read_frames(str(path))
    next(reader)
    found = []
    for number, data in enumerate(reader):
        if number % 16 == 0:
            frame = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(1, SIDE, SIDE, 3).float() / 255
            found.append(ssim(frame.movedim(-1, 1), pan(number % 24)[None].movedim(-1, 1), 11).mean())
    return float(torch.stack(found).mean())


if __name__ == "__main__":
    main()
