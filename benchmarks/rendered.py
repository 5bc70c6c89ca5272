"""Latents into a file as a stream: memory that does not grow with length, and no slower than one node after another.

    python -m benchmarks.rendered

On the tiny model, on a CPU, each case in a process of its own; memory is what the process resides in at most.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dev.inside import ALIAS, become_host

SIDE, SHORT, LONG = 256, 256, 4096
STREAM, NODES = "Decode, Interpolate & Save", "the three nodes"


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(_run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
        return
    print(f"{SIDE}×{SIDE}, mp4-h264, window 8, overlap 4")
    print("| frames | multiplier | by | seconds | frames a second | most memory, MiB |")
    print("|---|---|---|---|---|---|")
    for way, frames, multiplier in (
        (STREAM, SHORT, 1), (NODES, SHORT, 1), (STREAM, SHORT, 2), (NODES, SHORT, 2), (STREAM, LONG, 1),
    ):  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.rendered", way, str(frames), str(multiplier)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = json.loads(out.strip().splitlines()[-1])
        seconds, peak = found["seconds"], found["peak"]
        rate = frames * multiplier / seconds
        print(f"| {frames} | {multiplier} | {way} | {seconds:.1f} | {rate:.1f} | {peak:.0f} |", flush=True)


def _run(way: str, frames: int, multiplier: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        pack = become_host("--cpu", "--base-directory", folder)
        tiny, host = (importlib.import_module(f"{ALIAS}.exvideo_core.{name}") for name in ("tiny", "host"))
        tiny.write_tiny_model(Path(folder, "models"))
        _, _, vae = host.load_svd(Path(folder, "models", tiny.CHECKPOINT))
        entry = asyncio.run(pack.comfy_entrypoint())
        nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(entry.get_node_list())}
        for node in nodes.values():
            node.hidden = importlib.import_module("comfy_api.latest").io.HiddenHolder(*[None] * 6)
        samples = {"samples": torch.randn(frames, 4, SIDE // 8, SIDE // 8)}
        files = {"filename_prefix": "clip", "format": "mp4-h264", "crf": 19}
        with torch.inference_mode():
            # What is loaded and compiled once is not the stream's.
            nodes["ExVideoDecode"].execute({"samples": samples["samples"][:8]}, vae)
            begun = time.perf_counter()
            if way == STREAM:
                nodes["ExVideoRender"].execute(samples, vae, 30.0, multiplier, 8, 4, keep_latents="never", **files)
            else:
                images, fps = _args(nodes["ExVideoDecode"].execute(samples, vae))[0], 30.0
                if multiplier > 1:
                    images, fps = _args(nodes["ExVideoInterpolate"].execute(images, multiplier, fps))
                nodes["ExVideoSave"].execute(images, fps, **files)
            seconds = time.perf_counter() - begun
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024
    return {"seconds": seconds, "peak": peak}


def _args(output: Any) -> tuple[Any, ...]:
    return tuple(output.args)


if __name__ == "__main__":
    main()
