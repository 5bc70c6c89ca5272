"""One pass of the full-size UNet: ours, the authors' code, and SVD in ComfyUI as it is, on the same weights.

    python -m benchmarks.unet --frames 16 --size 32x32 --rounds 3

On the CPU, in float32, taking turns in one process: medians, ratios to the authors' code, and peak resident memory
beyond what was there before the pass (Linux).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dev import reference
from dev.inside import ALIAS, become_host, svd_model

IDS, TIMESTEP = (29, 127, 0.02), 0.4
GIB = 2**20  # of the KiB in /proc


def resident(reset: bool = False) -> tuple[float, float]:
    """Peak and present resident memory in GiB; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0, 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = dict(line.split(":") for line in status.read_text().splitlines() if line.startswith("Vm"))
    return int(found["VmHWM"].split()[0]) / GIB, int(found["VmRSS"].split()[0]) / GIB


Step = Callable[[], Any]


def contenders(frames: int, height: int, width: int) -> dict[str, tuple[Step, Step]]:
    """What is compared, by name: what puts the weights in place, and what makes one pass."""
    become_host("--cpu")
    host, svd, tiny = (importlib.import_module(f"{ALIAS}.exvideo_core.{name}") for name in ("host", "svd", "tiny"))
    management = importlib.import_module("comfy.model_management")
    layout = svd.SVDLayout()
    layout_tensors = {svd.UNET_PREFIX + key: shape for key, shape in layout.unet.tensors()}

    class OnlyUNet:
        def tensors(self) -> dict[str, Any]:
            return layout_tensors

    weights = tiny.draw_checkpoint(OnlyUNet())
    extension = tiny.draw_extension(weights, 128)
    model = svd_model(weights, torch.device("cpu"), torch.float32)
    authors = reference.unet(weights, extension)

    generator = torch.Generator().manual_seed(0)
    x, token = torch.randn(frames, 8, height, width, generator=generator), torch.randn(1, 1, 1024, generator=generator)
    adm = model.model.encode_adm(fps=IDS[0] + 1, motion_bucket_id=IDS[1], augmentation_level=IDS[2])

    def in_host(patched: Any) -> tuple[Step, Step]:
        def run() -> Any:
            return patched.model.diffusion_model(
                x,
                torch.full((frames,), TIMESTEP),
                token.expand(frames, -1, -1),
                adm.expand(frames, -1),
                transformer_options={"wrappers": patched.wrappers},
                num_video_frames=frames,
            )

        return lambda: management.load_models_gpu([patched, *patched.get_additional_models()]), run

    return {
        "the authors' code": (lambda: None, lambda: authors(x, TIMESTEP, token[0], torch.tensor([IDS]))),
        "ExVideo in ComfyUI": in_host(host.apply_extension(model, extension)),
        "SVD in ComfyUI, not extended": in_host(model),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Time one pass of the full-size UNet on this CPU.")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", default="32x32", help="latents, height x width")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))
    runs = contenders(arguments.frames, height, width)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    memory: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, (prepare, run) in runs.items():
            prepare()
            gc.collect()
            _, before = resident(reset=True)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
            memory[name].append(resident()[0] - before)
    first = next(iter(runs))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{cores} cores of {platform.machine()}, torch {torch.__version__}, float32, {arguments.rounds} rounds")
    print(f"{arguments.frames} frames, latents {height}×{width}, one pass\n")
    print("| | seconds, median | ratio | peak memory, GiB | ratio |\n|---|---|---|---|---|")
    for name in runs:
        own, top = statistics.median(seconds[name]), statistics.median(memory[name])
        ratios = own / statistics.median(seconds[first]), top / max(statistics.median(memory[first]), 1e-9)
        print(f"| {name} | {own:.1f} | {ratios[0]:.2f} | {top:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
