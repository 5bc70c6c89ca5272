"""The networks at SVD's own size without storage, and what runs on them: bytes alive at once, and operations."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dev import reference
from dev.inside import ALIAS, become_host

DEVICE = "cuda"
"""Fake tensors can be on a GPU that is not there."""
CHANNELS = [320] * 2 + [640] * 2 + [1280] * 6 + [640] * 3 + [320] * 3

Run = Callable[..., Any]
Build = Callable[[], tuple[torch.nn.Module, Run]]


class LivePeak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all storages on the device that operators return, from their making to their end."""

    def __init__(self, but: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in but}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == DEVICE:
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


class Counted(NamedTuple):
    """Of one run: peak bytes beside weights and inputs, and floating-point operations."""

    bytes: int
    operations: int


class Attention(torch.autograd.Function):
    """Attention as one kernel: for its gradient it keeps inputs and output."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> torch.Tensor:  # type: ignore[override]
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, _gradient: Any) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def count(build: Build, *shapes: tuple[int, ...], operations: bool = False) -> Counted:
    """Count one run in half precision on inputs of these shapes. Attention is one kernel, as on a GPU."""
    attention = 0

    def one_kernel(query: Any, key: Any, *_: Any, **__: Any) -> torch.Tensor:
        nonlocal attention
        attention += 4 * query.numel() * key.shape[-2]
        return Attention.apply(query, key, _[0])  # type: ignore[no-untyped-call]

    fused = patch.object(F, "scaled_dot_product_attention", one_kernel)
    try:
        with fused, FakeTensorMode(allow_non_fake_inputs=True), torch.device(DEVICE), torch.no_grad():
            torch.set_default_dtype(torch.float16)  # fake modules cannot be cast afterwards
            network, run = build()
            inputs = [torch.empty(shape) for shape in shapes]
            if operations:
                with FlopCounterMode(display=False) as flops:
                    run(*inputs)
                return Counted(0, flops.get_total_flops() + attention)
            with LivePeak([*network.parameters(), *network.buffers(), *inputs]) as live:
                run(*inputs)
            return Counted(live.peak, 0)
    finally:
        torch.set_default_dtype(torch.float32)


def authors_unet() -> tuple[torch.nn.Module, Run]:
    """The authors' UNet for 128 frames: of latents [T, 8, h, w] and a token [1, 1024]."""
    network = reference.module("diffsynth.models.svd_unet").SVDUNet(add_positional_conv=128)
    _give_storage(network)
    return network, lambda x, token: network(x, 0.4, token, torch.empty(1, 3))


def our_unet(budget: int | None, park: bool = False) -> tuple[torch.nn.Module, Run]:
    """ComfyUI's UNet, extended to 128 frames, with so much working memory, skip connections parked or not."""
    become_host("--cpu")
    chunked, transformers, extension, layers, svd, unet = core(
        "chunked", "chunked.transformer", "extension", "layers", "svd", "unet"
    )
    attention: Any = importlib.import_module("comfy.ldm.modules.attention")
    shapes = {svd.UNET_PREFIX + key: shape for key, shape in svd.SVDLayout().unet.tensors()}
    on_meta = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = importlib.import_module("comfy.model_detection").detect_unet_config(on_meta, svd.UNET_PREFIX)
    found = importlib.import_module("comfy.supported_models").SVD_img2vid(config)
    network = importlib.import_module("comfy.ldm.modules.diffusionmodules.openaimodel").UNetModel(
        **{**found.unet_config, "dtype": torch.float16, "device": DEVICE},
        operations=importlib.import_module("comfy.ops").disable_weight_init,
    )
    channels = dict(zip(extension.LAYERS, CHANNELS, strict=True))
    with torch.device("meta"):
        tensors = {k: torch.empty(s) for k, s in extension.extension_shapes(128, channels, 1024).items()}
        positions = layers.PositionLayers(extension.Extension(tensors, 128).position_weights())
    _give_storage(positions)
    wrapper = partial(unet.extended_unet, positions, lambda x: chunked.Work(budget, park=park))
    place = importlib.import_module("comfy.patcher_extension").WrappersMP.DIFFUSION_MODEL

    def run(x: torch.Tensor, token: torch.Tensor) -> Any:
        frames = len(x)
        options = {"wrappers": {place: {"exvideo": [wrapper]}}}
        inputs = x, torch.empty(frames), token.expand(frames, 1, -1), torch.empty(frames, 768)
        # The attention that a GPU would use; the host's for CPUs looks at how much memory there really is.
        by_kernel = patch.object(attention, "optimized_attention", attention.attention_pytorch)
        # Tensors without storage are of a class of their own, as quantized weights are; those of a GPU are not.
        ordinary = patch.object(transformers, "is_whole", lambda weight: True)
        with by_kernel, ordinary:
            return network(*inputs, transformer_options=options, num_video_frames=frames)

    return torch.nn.ModuleList([network, positions]), run


def authors_decoder() -> tuple[torch.nn.Module, Run]:
    """The authors' temporal decoder, on the latents [n, 4, h, w] of one window."""
    network = reference.module("diffsynth.models.svd_vae_decoder").SVDVAEDecoder()
    _give_storage(network)
    return network, lambda x: network(x.transpose(0, 1))


def host_decoder() -> tuple[torch.nn.Module, Run]:
    """ComfyUI's temporal decoder as it is."""
    network = _host_vae("decoder")
    return network, network


def our_decoder(budget: int | None) -> tuple[torch.nn.Module, Run]:
    """ComfyUI's temporal decoder in chunks."""
    network, _ = host_decoder()
    (chunked,) = core("chunked")
    return network, partial(chunked.decode, chunked.Work(budget), network)


def host_encoder() -> tuple[torch.nn.Module, Run]:
    """ComfyUI's image encoder of the autoencoder, on pixels [n, 3, H, W]."""
    network = _host_vae("encoder")
    return network, network


def _host_vae(part: str) -> torch.nn.Module:
    become_host("--cpu")
    checkpoint, svd = core("host.checkpoint", "svd")
    network: torch.nn.Module = getattr(checkpoint.autoencoder(svd.SVDLayout()), part)
    _give_storage(network)
    attention = importlib.import_module("comfy.ldm.modules.diffusionmodules.model").pytorch_attention
    for layer in network.modules():
        if hasattr(layer, "optimized_attention"):
            layer.optimized_attention = attention
    return network


def core(*names: str) -> list[Any]:
    return [importlib.import_module(f"{ALIAS}.exvideo_core.{name}") for name in names]


def _give_storage(network: torch.nn.Module) -> None:
    """Put all parameters on the device, those too that were made elsewhere."""
    for part in network.modules():
        for name, parameter in part.named_parameters(recurse=False):
            part.register_parameter(name, torch.nn.Parameter(torch.empty(parameter.shape), requires_grad=False))
