"""What only a GPU shows, beside the times of `benchmarks.measured --cuda`, in one run.

    python -m benchmarks.card

Whether a video is the one that a processor makes, whether 128 frames at 512×512 fit a card of 8 GB and a step of
post-tuning one of 24, whether two runs are the same to the bit, and how long each setting of memory takes.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.measured import GIB, Machine
from benchmarks.networks import OURS, Networks
from dev.inside import become_host, core
from dev.tiny.data import HELD_OUT
from dev.tiny.scenes import scene
from dev.tiny.ways import Studio

WEIGHTS = 3.47
"""GiB of SVD's UNet with an extension, and of the decoder."""
FRAMES, SIZE = 128, (64, 64)
HOST_OPTIONS = ("--use-pytorch-cross-attention",)


def main() -> None:
    parser = argparse.ArgumentParser(description="What only a GPU shows.")
    parser.add_argument(
        "--video", type=Path, help="only make the trained tiny model's video on the CPU, into this file"
    )
    parser.add_argument("--train", type=int, default=6, help="steps of post-tuning at SVD's own size")
    arguments = parser.parse_args()
    if arguments.video:
        torch.save(_video("--cpu"), arguments.video)
        return
    become_host(*HOST_OPTIONS)
    with torch.inference_mode():
        same_as_on_a_processor()
    torch.cuda.empty_cache()
    machine = Machine(torch.device("cuda"))
    print(f"\n{machine}, ComfyUI {importlib.import_module('comfyui_version').__version__}", flush=True)
    networks = Networks(machine.device, torch.float16, *HOST_OPTIONS)
    with torch.inference_mode():
        settings_of_memory(machine, networks)
        on_a_small_card(networks)
    post_tuning(machine, networks, arguments.train)


def same_as_on_a_processor() -> None:
    """Print how far a video of the trained tiny model in half precision is from the one in float32 on a processor."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "video.pt")
        command = [sys.executable, "-m", "benchmarks.card", "--video", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        theirs = torch.load(file)
    ours, again = _video(), _video()
    error = (ours - theirs).abs()
    print(
        f"\nThe trained tiny model's video, {len(ours)} frames: mean difference {255 * error.mean():.2f} of 255 "
        f"(last frame {255 * error[-1].mean():.2f}); two runs the same to the bit: {torch.equal(ours, again)}"
    )


def settings_of_memory(machine: Machine, networks: Networks) -> None:
    """Print seconds and memory of a pass by each setting of *Apply ExVideo*."""
    print("\n| memory | seconds a pass | peak beside the weights, GiB |\n|---|---|---|")
    for setting in core("budget").BUDGETS:
        ours = networks.unet_pass(FRAMES, *SIZE, memory=setting)[OURS]
        ours.prepare()
        first = ours.run().clone()
        seconds, peak = machine.measure(ours.run)
        same = "" if torch.equal(first, ours.run()) else " (and not the same again)"
        print(f"| {setting}{same} | {seconds:.2f} | {peak:.2f} |", flush=True)


def on_a_small_card(networks: Networks, gib: float = 8) -> None:
    """Print what a step with guidance and a window's decoding take where only so much is free beside the weights."""
    steps = networks.guided_step(FRAMES, *SIZE)[OURS], networks.decoding(8, *SIZE)[OURS]
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(int(free - (gib - WEIGHTS) * GIB), 0), dtype=torch.uint8, device="cuda")
    free, before = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
    print(f"\nWith {free / GIB:.2f} GiB free beside the weights, which take {WEIGHTS}:")
    for name, step in zip(("a step with guidance", "a window's decoding"), steps, strict=True):
        torch.cuda.reset_peak_memory_stats()
        step.prepare()
        step.run()
        peak = (torch.cuda.max_memory_reserved() - before) / GIB + WEIGHTS
        print(f"- {name}: {peak:.2f} GiB in all at most, what the allocator keeps included", flush=True)
    del ballast


def post_tuning(machine: Machine, networks: Networks, steps: int) -> None:
    """Print seconds, memory and loss of a few steps of training on one clip of noise at SVD's own size."""
    learning, training, budget = core("host.learning"), core("post_tuning.training"), core("budget")
    cache, recipe = core("post_tuning.cache"), core("post_tuning.recipe")
    model, extension = networks.base, networks.extension
    generator = torch.Generator().manual_seed(0)
    shape = core("types").LatentShape(FRAMES, 4, *SIZE)
    clip = cache.Clip(torch.randn(shape, generator=generator), torch.randn(1, 1, 1024, generator=generator), 127)
    one = type("OneClip", (list,), {"identity": "noise"})([clip])
    working = budget.training_budget("auto", *learning.training_memory(model, extension, shape))
    wanted = recipe.Recipe(steps=steps, learning_rate=1e-4, average_every=10**6)
    engine = core("post_tuning.engine").Engine()
    engine.in_half = learning.computes_in_half(model)
    torch.cuda.empty_cache()
    beside = torch.cuda.memory_allocated() - model.model_size()  # the extension, which a run keeps elsewhere
    with learning.trainable(model, extension, working) as (denoise, parameters):
        run = training.Training(denoise, parameters, extension, one, wanted, None, engine)

        def losses() -> list[float]:
            with torch.no_grad():
                return [float(run._loss(number)) for number in range(4)]

        before, seconds, peaks = losses(), [], []
        for step in range(steps):
            spent, _ = machine.measure(partial(run._step, step))
            print(f"step {step + 1}: {spent:.2f} s", flush=True)
            seconds.append(spent)
            peaks.append(torch.cuda.max_memory_allocated() - beside)
        after = losses()
    print(f"\n{steps} steps of post-tuning, {FRAMES} frames, 512×512, AdamW in float32, {working} bytes to work in:")
    print(f"- seconds a step: {statistics.median(seconds):.2f}")
    print(f"- memory, all in all: {max(peaks) / GIB:.2f} GiB; steps taken: {engine.taken()}")
    print(f"- loss at four noise levels: {_listed(before)} before, {_listed(after)} after", flush=True)


def _listed(losses: list[float]) -> str:
    return ", ".join(f"{loss:.4f}" for loss in losses)


def _video(*arguments: str) -> torch.Tensor:
    become_host(*arguments)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        return Studio(Path(folder)).extended(scene(HELD_OUT + 11), 64).float().cpu()


if __name__ == "__main__":
    main()
