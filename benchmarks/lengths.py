"""Videos of any length in the memory of one segment: time and memory of ExVideo Long Sampler over length.

    python -m benchmarks.lengths

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

SIDE, SEGMENT, OVERLAP = 128, 128, 16
LENGTHS = (128, 512, 1024, 4096)


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(_run(sys.argv[1], int(sys.argv[2]))))
        return
    print(f"{SIDE}×{SIDE}, segments or windows of {SEGMENT} frames, overlap {OVERLAP}, 1 step, with guidance")
    print("| mode | frames | seconds | seconds a frame | most memory, MiB |\n|---|---|---|---|---|")
    for mode in ("chain", "windows"):
        for frames in LENGTHS:
            found = measure("benchmarks.lengths", mode, frames)
            seconds = found["seconds"]
            print(f"| {mode} | {frames} | {seconds:.1f} | {seconds / frames:.3f} | {found['peak']:.0f} |", flush=True)


def _run(mode: str, frames: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        become_host("--cpu", "--base-directory", folder)
        tiny, host = core("tiny"), core("host")
        tiny.write_tiny_model(Path(folder, "models"))
        model, clip_vision, vae = host.load_svd(Path(folder, "models", tiny.CHECKPOINT))
        extension = core("extension").read_extension(Path(folder, "models", tiny.EXTENSION))
        run = node_runner()
        picture = torch.rand(1, SIDE, SIDE, 3)
        with torch.inference_mode():
            (extended,) = run("ExVideoApply", model=model, exvideo=extension)
            begun = time.perf_counter()
            run(
                "ExVideoLongSampler", model=extended, clip_vision=clip_vision, vae=vae, init_image=picture,
                total_frames=frames, segment_frames=SEGMENT, overlap=OVERLAP, width=SIDE, height=SIDE, steps=1,
                mode=mode,
            )  # fmt: skip
            seconds = time.perf_counter() - begun
    return {"seconds": seconds, "peak": most_resident()}


if __name__ == "__main__":
    main()
