"""Peak memory of one pass of the UNet at the real sizes, counted on fake tensors: exact, without a GPU or real memory.

    python -m benchmarks.counted

Counted are the tensors alive at once, weights apart. What a kernel allocates for itself is not seen.
"""

from __future__ import annotations

import argparse
import importlib
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dev import reference
from dev.inside import ALIAS, become_host

SIZES = {"512×512": (64, 64), "1024×576": (72, 128), "1024×1024": (128, 128)}
GOALS = {"512×512": 2.6, "1024×576": 5.9, "1024×1024": 10.5}
"""GiB, for 128 frames in half precision."""
CHANNELS = [320] * 2 + [640] * 2 + [1280] * 6 + [640] * 3 + [320] * 3


class LivePeak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all storages that operators return, from their making to their end."""

    def __init__(self, but: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in but}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._end, key, size)

    def _end(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def peak(build: Callable[[], tuple[torch.nn.Module, Callable[..., Any]]], frames: int, height: int, width: int) -> int:
    """Peak bytes of one pass in half precision, beside weights and inputs."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            torch.set_default_dtype(torch.float16)  # fake modules cannot be cast afterwards
            network, run = build()
            inputs = torch.empty(frames, 8, height, width), torch.empty(1, 1024)
            with LivePeak([*network.parameters(), *network.buffers(), *inputs]) as live:
                run(*inputs)
            return live.peak
    finally:
        torch.set_default_dtype(torch.float32)


def authors() -> tuple[torch.nn.Module, Callable[..., Any]]:
    """The authors' UNet for 128 frames."""
    network = reference.module("diffsynth.models.svd_unet").SVDUNet(add_positional_conv=128)
    return network, lambda x, token: network(x, 0.4, token, torch.empty(1, 3))


def ours(budget: int | None) -> tuple[torch.nn.Module, Callable[..., Any]]:
    """ComfyUI's UNet, extended to 128 frames, with so much working memory."""
    become_host("--cpu")
    core = f"{ALIAS}.exvideo_core"
    chunked, extension, layers, svd = (
        importlib.import_module(f"{core}.{name}") for name in ("chunked", "extension", "layers", "svd")
    )
    unet_model = importlib.import_module("comfy.ldm.modules.diffusionmodules.openaimodel").UNetModel
    attention: Any = importlib.import_module("comfy.ldm.modules.attention")
    shapes = {svd.UNET_PREFIX + key: shape for key, shape in svd.SVDLayout().unet.tensors()}
    on_meta = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = importlib.import_module("comfy.model_detection").detect_unet_config(on_meta, svd.UNET_PREFIX)
    found = importlib.import_module("comfy.supported_models").SVD_img2vid(config)
    network = unet_model(
        **{**found.unet_config, "dtype": torch.float16, "device": "cpu"},
        operations=importlib.import_module("comfy.ops").disable_weight_init,
    )
    channels = dict(zip(extension.LAYERS, CHANNELS, strict=True))
    with torch.device("meta"):
        tensors = {k: torch.empty(s) for k, s in extension.extension_shapes(128, channels, 1024).items()}
        positions = layers.PositionLayers(extension.Extension(tensors, 128).position_weights())
    for part in positions.modules():
        for name, parameter in part.named_parameters(recurse=False):
            part.register_parameter(name, torch.nn.Parameter(torch.empty(parameter.shape), requires_grad=False))
    wrapper = partial(layers.extended_unet, positions, lambda x: chunked.Work(budget))
    place = importlib.import_module("comfy.patcher_extension").WrappersMP.DIFFUSION_MODEL

    def run(x: torch.Tensor, token: torch.Tensor) -> Any:
        frames = len(x)
        options = {"wrappers": {place: {"exvideo": [wrapper]}}}
        inputs = x, torch.empty(frames), token.expand(frames, 1, -1), torch.empty(frames, 768)
        # The attention that a GPU would use; the host's for CPUs looks at how much memory there really is.
        chosen, attention.optimized_attention = attention.optimized_attention, attention.attention_pytorch
        try:
            return network(*inputs, transformer_options=options, num_video_frames=frames)
        finally:
            attention.optimized_attention = chosen

    return torch.nn.ModuleList([network, positions]), run


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the peak memory of one pass, weights apart.")
    parser.add_argument("--frames", type=int, default=128)
    frames = parser.parse_args().frames
    budgets = {"2 GiB": 2 << 30, "512 MiB": 512 << 20, "64 MiB": 64 << 20}
    print(f"{frames} frames, one pass, half precision, GiB beside the weights, by working memory")
    print("| size | authors' code | " + " | ".join(budgets) + " |\n|---|---|" + "---|" * len(budgets))
    for size, (height, width) in SIZES.items():
        cells = [peak(authors, frames, height, width)]
        cells += [peak(partial(ours, budget), frames, height, width) for budget in budgets.values()]
        print(f"| {size} | " + " | ".join(f"{cell / 2**30:.2f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
