"""Latents into a file as a stream: memory that does not grow with length, and no slower than one node after another.

    python -m benchmarks.rendered

On the tiny model, on a CPU, each case in a process of its own; memory is what the process resides in at most.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.own_process import measure, most_resident
from dev.inside import become_host, core, node_runner

SIDE, SHORT, LONG = 256, 256, 4096
WINDOW, OVERLAP = 8, 1
"""Little overlap, so that the longest takes minutes."""
STREAM, NODES = "Decode, Interpolate & Save", "the three nodes"


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(_run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
        return
    print(f"{SIDE}×{SIDE}, mp4-h264, window {WINDOW}, overlap {OVERLAP}")
    print("| frames | multiplier | by | seconds | frames a second | most memory, MiB |")
    print("|---|---|---|---|---|---|")
    for way, frames, multiplier in (
        (STREAM, SHORT, 1), (STREAM, SHORT, 2), (NODES, SHORT, 2), (STREAM, LONG, 1),
    ):  # fmt: skip
        found = measure("benchmarks.rendered", way, frames, multiplier)
        seconds, peak = found["seconds"], found["peak"]
        rate = frames * multiplier / seconds
        print(f"| {frames} | {multiplier} | {way} | {seconds:.1f} | {rate:.1f} | {peak:.0f} |", flush=True)


def _run(way: str, frames: int, multiplier: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        become_host("--cpu", "--base-directory", folder)
        tiny, host = core("tiny"), core("host")
        tiny.write_tiny_model(Path(folder, "models"))
        _, _, vae = host.load_svd(Path(folder, "models", tiny.CHECKPOINT))
        run = node_runner()
        samples = {"samples": torch.randn(frames, 4, SIDE // 8, SIDE // 8)}
        windows = {"vae": vae, "window": WINDOW, "overlap": OVERLAP}
        with torch.inference_mode():
            # What is loaded and compiled once is not the stream's.
            run("ExVideoDecode", samples={"samples": samples["samples"][:WINDOW]}, **windows)
            begun = time.perf_counter()
            if way == STREAM:
                run("ExVideoRender", samples=samples, **windows, multiplier=multiplier, keep_latents="never")
            else:
                images, fps = run("ExVideoDecode", samples=samples, **windows)[0], 30.0
                if multiplier > 1:
                    images, fps = run("ExVideoInterpolate", images=images, multiplier=multiplier, fps=fps)
                run("ExVideoSave", images=images, fps=fps)
            seconds = time.perf_counter() - begun
    return {"seconds": seconds, "peak": most_resident()}


if __name__ == "__main__":
    main()
