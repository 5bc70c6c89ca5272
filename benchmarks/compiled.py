"""What compiling a model, as ComfyUI's TorchCompileModel does, gains: ours and SVD in ComfyUI as it is.

    python -m benchmarks.compiled                  on the CPU, in float32
    python -m benchmarks.compiled --cuda           on a GPU, in float16, 128 frames of 512×512

Whole steps with guidance, at SVD's own size, on the same weights.
"""

from __future__ import annotations

import argparse
import importlib

import torch

from benchmarks.measured import Machine
from benchmarks.networks import COMPILED, HOST, OURS, Networks


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="What compiling gains.")
    parser.add_argument("--cuda", action="store_true", help="on a GPU, in float16")
    parser.add_argument("--frames", type=int, help="of a clip; 16 on the CPU, 128 on a GPU")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    arguments = parser.parse_args()
    frames, side = (128, 64) if arguments.cuda else (16, 16)
    machine = Machine(torch.device("cuda" if arguments.cuda else "cpu"))
    options = ["--use-pytorch-cross-attention"] if arguments.cuda else ["--cpu", "--use-pytorch-cross-attention"]
    networks = Networks(machine.device, torch.float16 if arguments.cuda else torch.float32, *options)
    step = networks.guided_step(arguments.frames or frames, side, side, arguments.backend)

    print(f"{machine}, {arguments.backend}, {arguments.frames or frames} frames, {8 * side}×{8 * side}\n")
    print("| | first step, seconds | next, seconds | ratio | peak, GiB | difference | graphs | breaks |")
    print("|---|---|---|---|---|---|---|---|")
    counters = importlib.import_module("torch._dynamo").utils.counters
    for name in (OURS, HOST):
        plain = None
        for kind in (name, name + COMPILED):
            prepare, run = step[kind]
            prepare()
            counters.clear()
            first, _ = machine.measure(run)
            graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
            (seconds, peak), result = min(machine.measure(run) for _ in range(3)), run()
            result = result["samples"] if isinstance(result, dict) else result
            plain = plain or (seconds, result)
            apart = float((result - plain[1]).norm() / plain[1].norm())
            cells = f"{first:.2f} | {seconds:.2f} | {seconds / plain[0]:.2f} | {peak:.2f} | {apart:.1e}"
            print(f"| {kind} | {cells} | {graphs} | {breaks} |", flush=True)


if __name__ == "__main__":
    main()
