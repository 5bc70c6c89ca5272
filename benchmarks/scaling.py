"""How time and memory of one pass grow with the frames and with the size, fitted, with a plot.

    python -m benchmarks.scaling                   time on the CPU at small sizes; memory counted at the real ones
    python -m benchmarks.scaling --cuda            time on a GPU at the real sizes

The plot is benchmarks/scaling.svg.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.counted import GIB, MIB
from benchmarks.fake import Build, authors_unet, count, our_unet
from benchmarks.measured import Machine
from benchmarks.networks import OURS, Networks

FRAMES = [16, 32, 64, 128]
SIDES = [256, 512, 768, 1024]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The power of x that y grows by: least squares of their logarithms."""
    logs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True)]
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    return sum((a - mean_x) * (b - mean_y) for a, b in logs) / sum((a - mean_x) ** 2 for a, _ in logs)


def memory() -> dict[str, tuple[list[int], dict[str, list[float]]]]:
    """GiB of one pass, counted: by frames at 512×512, and by size at 128 frames."""
    builds: dict[str, Build] = {"authors' code": authors_unet, "ours, balanced": partial(our_unet, 512 * MIB)}

    def gib(build: Build, frames: int, side: int) -> float:
        return count(build, (frames, 8, side // 8, side // 8), (1, 1024)).bytes / GIB

    by_frames = {name: [gib(build, n, 512) for n in FRAMES] for name, build in builds.items()}
    by_size = {name: [gib(build, 128, side) for side in SIDES] for name, build in builds.items()}
    return {"frames, 512×512": (FRAMES, by_frames), "pixels a side, 128 frames": (SIDES, by_size)}


@torch.no_grad()
def times(cuda: bool) -> dict[str, tuple[list[int], dict[str, list[float]]]]:
    """Milliseconds a frame of one pass: by frames at one size, and by size at one length."""
    device = torch.device("cuda" if cuda else "cpu")
    machine = Machine(device)
    options = ["--use-pytorch-cross-attention", *([] if cuda else ["--cpu"])]
    networks = Networks(device, torch.float16 if cuda else torch.float32, *options)
    side, frames, sides = (512, 128, SIDES) if cuda else (128, 8, [128, 256, 384, 512])

    def milliseconds(frames: int, side: int) -> float:
        ours = networks.unet_pass(frames, side // 8, side // 8)[OURS]
        ours.prepare()
        ours.run() if cuda else None  # kernels are chosen in the first pass
        return 1000 * machine.measure(ours.run)[0] / frames

    print(machine)
    return {
        f"frames, {side}×{side}": (FRAMES, {"ours": [milliseconds(n, side) for n in FRAMES]}),
        f"pixels a side, {frames} frames": (sides, {"ours": [milliseconds(frames, side) for side in sides]}),
    }


def report(what: str, tables: dict[str, tuple[list[int], dict[str, list[float]]]]) -> None:
    """Print each table with the power that its values grow by."""
    for along, (x, rows) in tables.items():
        print(f"\n| {what}, by {along} | " + " | ".join(map(str, x)) + " | grows as |")
        print("|---|" + "---|" * (len(x) + 1))
        for name, y in rows.items():
            cells = " | ".join(f"{value:.2f}" for value in y)
            print(f"| {name} | {cells} | power {slope(x, y):.2f} |", flush=True)


def plot(path: Path, *columns: tuple[str, dict[str, tuple[list[int], dict[str, list[float]]]]]) -> None:
    """Draw all tables on logarithmic axes, a column each."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(columns), figsize=(5.5 * len(columns), 8), layout="constrained")
    for column, (what, tables) in enumerate(columns):
        for row, (along, (x, rows)) in enumerate(tables.items()):
            panel = axes[row][column]
            for name, y in rows.items():
                panel.loglog(x, y, "o-", label=f"{name}: power {slope(x, y):.2f}")
            values = sorted({value for y in rows.values() for value in (y[0], y[-1])})
            panel.minorticks_off()
            panel.set(xlabel=along, ylabel=what, xticks=x, xticklabels=x)
            panel.set(yticks=values, yticklabels=[f"{v:.3g}" if v < 100 else f"{v:.0f}" for v in values])
            panel.set_ylim(values[0] / 2, values[-1] * 2)
            panel.legend()
            panel.grid(alpha=0.3)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="How time and memory of one pass grow.")
    parser.add_argument("--cuda", action="store_true", help="time on a GPU, at the real sizes")
    parser.add_argument("--plot", type=Path, default=Path(__file__).with_name("scaling.svg"))
    arguments = parser.parse_args()
    counted, timed = memory(), times(arguments.cuda)
    report("GiB", counted)
    report("milliseconds a frame", timed)
    where = "GPU, float16" if arguments.cuda else "CPU, float32"
    plot(arguments.plot, ("GiB of one pass, float16, counted", counted), (f"milliseconds a frame, {where}", timed))
    print(f"\n{arguments.plot}")


if __name__ == "__main__":
    main()
