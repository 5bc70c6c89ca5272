"""What a step of post-tuning takes at SVD's own size, counted on fake tensors.

    python -m benchmarks.trained

Parameters, gradients and moments in float32, the pass in half precision. Counted are tensors alive on the device at
once; what a kernel allocates for itself is not seen.
"""

from __future__ import annotations

import argparse
import importlib
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.fake import CHANNELS, Attention, LivePeak, core, our_unet
from dev.inside import become_host

MIB, GIB = 2**20, 2**30
SIZES = {"512×512": (64, 64), "1024×576": (72, 128)}
FLOAT, HALF = 4, 2


class Step(NamedTuple):
    """Bytes of one step of training.

    Attributes:
        model: weights as the host loads them.
        parameters: what is trained; gradients take as much, moments twice as much.
        kept: what the pass keeps for its gradient.
        peak: at once, of what is kept, gradients and work.
    """

    model: int
    parameters: int
    kept: int
    peak: int

    @property
    def total(self) -> int:
        """Of the second step, when AdamW has its moments."""
        return self.model + 3 * self.parameters + max(self.peak, 3 * self.parameters)


def count_step(budget: int | None, frames: int, height: int, width: int) -> Step:
    """Count one pass and its gradient, with so much working memory."""
    become_host("--cpu")
    extension, layers, unet, learning = core("extension", "layers", "unet", "host.learning")
    place = importlib.import_module("comfy.patcher_extension").WrappersMP.DIFFUSION_MODEL
    kernel: Any = Attention.apply
    fused = patch.object(F, "scaled_dot_product_attention", lambda q, k, v, *_, **__: kernel(q, k, v))
    # Without a GPU nothing goes back through fake tensors on one; the sizes are the same on a fake processor.
    on_cpu = patch("benchmarks.fake.DEVICE", "cpu")
    not_new = patch.object(layers, "_is_new", lambda weights: False)
    try:
        with on_cpu, fused, not_new, FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
            torch.set_default_dtype(torch.float16)
            both, _run = our_unet(budget)
            network: Any = both[0]  # type: ignore[index]
            channels = dict(zip(extension.LAYERS, CHANNELS, strict=True))
            shapes = extension.extension_shapes(128, channels, 1024)
            start = extension.Extension({key: torch.empty(shape) for key, shape in shapes.items()}, 128)
            parameters, positions = learning.as_parameters(start, torch.device("cpu"))
            trained = dict(extension.Extension(parameters, 128).replaced_weights())
            wrapper = partial(unet.extended_unet, positions, lambda _: learning.work(budget))
            options: dict[str, Any] = {"wrappers": {place: {"exvideo": [wrapper]}}}
            options[unet.ATTENTION_OVERRIDE] = learning._torch_attention
            inputs = torch.empty(frames, 8, height, width), torch.empty(frames), torch.empty(frames, 1, 1024)
            model = sum(tensor.numel() for tensor in network.parameters()) * HALF
            with learning.swapped(network, trained):
                known = [*network.parameters(), *positions.parameters(), *inputs]
                with LivePeak(known) as live:
                    ids = torch.empty(frames, 768)
                    out = network(*inputs, ids, transformer_options=options, num_video_frames=frames)
                    kept = live.live
                    loss = out.float().square().mean()
                    del out
                    torch.autograd.backward(loss)
                    return Step(model, sum(p.numel() for p in parameters.values()) * FLOAT, kept, live.peak)
    finally:
        torch.set_default_dtype(torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the memory of a step of post-tuning.")
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--budget", type=int, default=512, help="MiB to work in")
    arguments = parser.parse_args()
    print(f"One step of post-tuning, {arguments.frames} frames, float16 with float32 parameters, GiB\n")
    print("| size | model | parameters | moments | kept by the pass | gradients, kept and work at once | in all |")
    print("|---|---|---|---|---|---|---|")
    for size, (height, width) in SIZES.items():
        step = count_step(arguments.budget * MIB, arguments.frames, height, width)
        row = step.model, step.parameters, 2 * step.parameters, step.kept, step.peak, step.total
        print(f"| {size} | " + " | ".join(f"{value / GIB:.2f}" for value in row) + " |", flush=True)


if __name__ == "__main__":
    main()
