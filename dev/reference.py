"""The authors' released code (diffsynth 1.1.9) as an oracle: its own classes, at any width, from our weights.

Its package imports far more than these few files need, and its networks are written for SVD's widths alone. So the
files are imported by themselves, and a network is built without storage and then given tensors of whatever width.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from exvideo_core.extension import Extension
from exvideo_core.svd import CLIP_PREFIX, UNET_PREFIX, VAE_PREFIX, CLIPLayout, SVDLayout

Weights = Mapping[str, torch.Tensor]

_PACKAGES = ("diffsynth", "diffsynth.models", "diffsynth.schedulers", "diffsynth.pipelines")
_ENCODER = "conditioner.embedders.3.encoder."
"""Where the authors look for the autoencoder's encoder: SVD's file has it twice."""


def module(name: str) -> ModuleType:
    """Import one file of the authors' code, such as `diffsynth.models.svd_unet`."""
    if _PACKAGES[0] not in sys.modules:
        found = importlib.util.find_spec(_PACKAGES[0])
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError("diffsynth 1.1.9, the authors' code, is not installed: run `make host`.")
        root = found.submodule_search_locations[0]
        for package in _PACKAGES:
            empty = ModuleType(package)
            empty.__path__ = [str(Path(root, *package.split(".")[1:]))]
            sys.modules[package] = empty
    return importlib.import_module(name)


def pipeline_module() -> ModuleType:
    """The file with the authors' pipeline, and their preparation of the picture for CLIP."""
    models, schedulers = module("diffsynth.models"), module("diffsynth.schedulers")
    # It imports these names from packages that are empty here.
    for name in ("ModelManager", "SVDImageEncoder", "SVDUNet", "SVDVAEEncoder", "SVDVAEDecoder"):
        setattr(models, name, object)
    schedulers.ContinuousODEScheduler = type(scheduler())  # type: ignore[attr-defined]
    return module("diffsynth.pipelines.svd_video")


def scheduler() -> Any:
    """The authors' noise levels and Euler step."""
    return module("diffsynth.schedulers.continuous_ode").ContinuousODEScheduler()


def unet(checkpoint: Weights, extension: Extension | None, head: int = 64) -> Any:
    """The authors' UNet.

    Args:
        checkpoint: under SVD's own names, of any width.
        extension: without one it is SVD alone.
        head: channels of an attention head.
    """
    svd_unet = module("diffsynth.models.svd_unet")
    with torch.device("meta"):
        network = svd_unet.SVDUNet(add_positional_conv=extension and extension.num_frames)
    tensors = svd_unet.SVDUNetStateDictConverter().from_civitai(_part(checkpoint, UNET_PREFIX))
    _fill(network, {**tensors, **(extension.tensors if extension else {})}, head)
    network.time_proj.num_channels = network.conv_in.weight.shape[0]
    return network


def vae_decoder(checkpoint: Weights) -> Any:
    """The authors' temporal decoder."""
    file = module("diffsynth.models.svd_vae_decoder")
    with torch.device("meta"):
        network = file.SVDVAEDecoder()
    _fill(network, file.SVDVAEDecoderStateDictConverter().from_civitai(_part(checkpoint, VAE_PREFIX)))
    return network


def vae_encoder(checkpoint: Weights) -> Any:
    """The authors' image encoder of the autoencoder.

    They scale what they encode by 0.13025, which is SDXL's factor, and divide by SVD's 0.18215 to decode. Here it
    is SVD's in both directions.
    """
    file = module("diffsynth.models.svd_vae_encoder")
    with torch.device("meta"):
        network = file.SVDVAEEncoder()
    renamed = {_ENCODER + key.removeprefix(VAE_PREFIX): tensor for key, tensor in _part(checkpoint, VAE_PREFIX).items()}
    # SVD's file folds this convolution into the one before it.
    like = next(iter(renamed.values()))
    renamed[_ENCODER + "quant_conv.weight"] = torch.eye(8).view(8, 8, 1, 1).to(like)
    renamed[_ENCODER + "quant_conv.bias"] = torch.zeros(8).to(like)
    _fill(network, file.SVDVAEEncoderStateDictConverter().from_civitai(renamed))
    network.scaling_factor = 0.18215
    return network


def image_encoder(checkpoint: Weights, layout: CLIPLayout) -> Any:
    """The authors' CLIP image encoder."""
    file = module("diffsynth.models.svd_image_encoder")
    with torch.device("meta"):
        network = file.SVDImageEncoder(num_encoder_layers=layout.layers)
    tensors = file.SVDImageEncoderStateDictConverter().from_civitai(_part(checkpoint, CLIP_PREFIX))
    _fill(network, tensors, layout.width // layout.heads)
    return network


def pipeline(checkpoint: Weights, extension: Extension, layout: SVDLayout) -> Any:
    """The authors' whole way from a picture to a video, on the CPU in float32."""
    pipe = pipeline_module().SVDVideoPipeline(device="cpu", torch_dtype=torch.float32)
    pipe.unet = unet(checkpoint, extension, layout.unet.head)
    pipe.vae_decoder = vae_decoder(checkpoint)
    pipe.vae_encoder = vae_encoder(checkpoint)
    pipe.image_encoder = image_encoder(checkpoint, layout.clip)
    return pipe


def _part(checkpoint: Weights, prefix: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in checkpoint.items() if key.startswith(prefix)}


def _fill(network: nn.Module, tensors: Weights, head: int | None = None) -> None:
    """Give a network without storage its tensors, shared and of any width, and set what it wrote down of widths."""
    missing = network.state_dict().keys() ^ tensors.keys()
    assert not missing, f"the names do not fit the authors' network: {sorted(missing)[:5]}"
    for key, tensor in tensors.items():
        parent, _, name = key.rpartition(".")
        network.get_submodule(parent).register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    part: Any
    for part in network.modules():
        if isinstance(part, nn.LayerNorm):
            part.normalized_shape = tuple(part.weight.shape)
        elif hasattr(part, "num_heads"):
            # Without a width of heads, as in the autoencoder, there is one.
            part.head_dim = head or part.to_q.weight.shape[0]
            part.num_heads = part.to_q.weight.shape[0] // part.head_dim
    network.eval()
