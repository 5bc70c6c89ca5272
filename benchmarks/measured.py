"""Time and peak memory at SVD's own size: ours, the authors' code, and SVD in ComfyUI as it is, on the same weights.

    python -m benchmarks.measured                  on the CPU, in float32, at sizes that take minutes
    python -m benchmarks.measured --cuda           on a GPU, in float16, at the real sizes

All in one process, taking turns: medians, and ratios to the authors' code.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.fake import authors_unet, count, our_unet
from benchmarks.networks import AUTHORS, OURS, Contender, Networks

KIB, GIB = 2**10, 2**30
CPU_SIZES = {"256×256": (32, 32)}
CUDA_SIZES = {"512×512": (64, 64), "1024×576": (72, 128), "1024×1024": (128, 128)}


class Machine:
    """What times and measures on one device."""

    def __init__(self, device: torch.device):
        self.device = device

    def __str__(self) -> str:
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float16"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"{cores} cores of {platform.machine()}, torch {torch.__version__}, float32"

    def measure(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Seconds, and peak GiB beyond what was there before."""
        gc.collect()
        before = self._begin()
        start = time.perf_counter()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter() - start, (torch.cuda.max_memory_allocated() - before) / GIB
        return time.perf_counter() - start, (self._resident("VmHWM") - before) / GIB

    def _begin(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        if platform.system() == "Linux":
            # Freed memory goes back to the system first, or what is used of it anew would not be seen.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        return self._resident("VmRSS")

    def _resident(self, name: str) -> int:
        status = Path("/proc/self/status")
        if not status.exists():
            return 0
        found = dict(line.split(":") for line in status.read_text().splitlines() if line.startswith("Vm"))
        return int(found[name].split()[0]) * KIB


def compare(
    machine: Machine,
    title: str,
    contenders: dict[str, Contender],
    rounds: int,
    operations: dict[str, int] | None = None,
) -> None:
    """Print a table of what is compared; with the operations of some, also their rates."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    warm = machine.device.type == "cuda"
    for turn in range(rounds + warm):
        for name, contender in contenders.items():
            contender.prepare()
            result = machine.measure(contender.run)
            if turn or not warm:  # kernels are chosen in the first turn
                measured[name].append(result)
    rate = "| TFLOP/s " if operations else ""
    print(f"\n{title}\n\n| | seconds | ratio | peak, GiB | ratio {rate}|\n|---|---|---|---|---{'|---' * bool(rate)}|")
    reference = [statistics.median(values) for values in zip(*measured[AUTHORS], strict=True)]
    for name, values in measured.items():
        seconds, peak = (statistics.median(column) for column in zip(*values, strict=True))
        ratios = seconds / reference[0], peak / max(reference[1], 1e-9)
        cells = [f"{seconds:.2f}", f"{ratios[0]:.2f}", f"{peak:.2f}", f"{ratios[1]:.2f}"]
        if operations:
            cells += [f"{operations[name] / seconds / 1e12:.3f}" if name in operations else ""]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def matrix_rate(machine: Machine, side: int, at_once: int) -> float:
    """TFLOP/s of the device's own matrix product, the best of ten times so many."""
    dtype = torch.float16 if machine.device.type == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=machine.device, dtype=dtype) for _ in range(2))

    def products() -> None:
        for _ in range(at_once):
            a @ b

    return 2e-12 * side**3 * at_once / min(machine.measure(products)[0] for _ in range(10))


def difference(contenders: dict[str, Contender]) -> float:
    """Of our result to the authors', by the norm of theirs."""
    ours, theirs = (contenders[name] for name in (OURS, AUTHORS))
    ours.prepare()
    results = ours.run().float(), theirs.run().float()
    return float((results[0] - results[1]).norm() / results[1].norm())


def attention_backends() -> Iterator[tuple[str, AbstractContextManager[Any]]]:
    """torch's kernels for attention, and each of them alone."""
    yield "torch's choice", nullcontext()
    kernels = importlib.import_module("torch.nn.attention")
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        backend = getattr(kernels.SDPBackend, name, None)
        if backend is not None:
            yield name.lower(), kernels.sdpa_kernel(backend)


def by_attention(machine: Machine, contender: Contender) -> None:
    """Print how long our pass takes with each kernel for attention."""
    print("\n| attention | seconds |\n|---|---|")
    contender.prepare()
    for name, only in attention_backends():
        try:
            with only:
                contender.run()
                print(f"| {name} | {machine.measure(contender.run)[0]:.2f} |", flush=True)
        except RuntimeError as error:
            print(f"| {name} | cannot do it: {str(error).splitlines()[0]} |", flush=True)


def by_kernel(contender: Contender) -> None:
    """Print where the time of our pass goes."""
    contender.prepare()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        contender.run()
        torch.cuda.synchronize()
    table = profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=60)
    print(f"\n```\n{table}\n```", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Time and peak memory beside the authors' code.")
    parser.add_argument("--cuda", action="store_true", help="on a GPU, in float16, 128 frames at the real sizes")
    parser.add_argument("--frames", type=int, help="of a clip; 16 on the CPU, 128 on a GPU")
    parser.add_argument("--sizes", help="only these, such as 512×512,1024×576")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device("cuda" if arguments.cuda else "cpu")
    machine = Machine(device)
    frames = arguments.frames or (128 if arguments.cuda else 16)
    sizes = CUDA_SIZES if arguments.cuda else CPU_SIZES
    if arguments.sizes:
        sizes = {name: sizes[name] for name in arguments.sizes.split(",")}

    # Counted first: the network without storage then is gone.
    counted = {
        size: {
            name: count(build, (frames, 8, *shape), (1, 1024), operations=True).operations
            for name, build in ((AUTHORS, authors_unet), (OURS, partial(our_unet, None)))
        }
        for size, shape in sizes.items()
    }
    # PyTorch's attention is what ComfyUI takes on a GPU; on a CPU it has to be told.
    options = ["--use-pytorch-cross-attention"] if arguments.cuda else ["--cpu", "--use-pytorch-cross-attention"]
    networks = Networks(device, torch.float16 if arguments.cuda else torch.float32, *options)
    version = importlib.import_module("comfyui_version").__version__
    print(f"{machine}, ComfyUI {version}, {arguments.rounds} rounds", flush=True)
    side, at_once = (8192, 20) if arguments.cuda else (2048, 1)
    print(f"\nmatrix product: {matrix_rate(machine, side, at_once):.3f} TFLOP/s")
    for size, (height, width) in sizes.items():
        passes = networks.unet_pass(frames, height, width)
        title = f"One pass of the UNet, {frames} frames, {size}"
        compare(machine, title, passes, arguments.rounds, counted[size])
        if arguments.cuda:
            print(f"\nrelative difference of ours to the authors' code: {difference(passes):.1e}")
            by_attention(machine, passes[OURS])
            by_kernel(passes[OURS])
        step = frames if arguments.cuda else frames // 2
        title = f"One step with guidance, {step} frames, {size}"
        compare(machine, title, networks.guided_step(step, height, width), arguments.rounds)
        # A window takes as long as a pass of the UNet of as many pixels, which is too long on a CPU.
        height, width = (height, width) if arguments.cuda else (height // 2, width // 2)
        size = f"{8 * width}×{8 * height}"
        title = f"Decoding a window of 8 frames, {size}"
        compare(machine, title, networks.decoding(8, height, width), arguments.rounds)
        compare(machine, f"Encoding one picture, {size}", networks.encoding(height, width), arguments.rounds)


if __name__ == "__main__":
    main()
