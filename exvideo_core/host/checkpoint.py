"""SVD checkpoints of any width, into the host's own classes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_detection
import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL, AutoencodingEngine

from ..files import open_tensors
from ..svd import CLIP_PREFIX, UNET_PREFIX, VAE_PREFIX, SVDLayout, read_layout
from .patch import ModelPatcher, patcher_class


def load_svd(path: Path) -> tuple[Any, Any, Any]:
    """Load an SVD checkpoint of any width: MODEL, CLIP_VISION, VAE.

    SVD's own widths go through the host's loader. It knows no others, so for those its classes are put together
    here, at the widths read from the file.

    Raises:
        ExVideoError: not a whole SVD checkpoint in a .safetensors file.
    """
    with open_tensors(path, "Choose an SVD checkpoint of that format.") as (_, shapes):
        layout = read_layout(path.name, shapes)
    if layout == SVDLayout():
        model, _, vae, encoder, *_ = comfy.sd.load_checkpoint_guess_config(
            str(path), output_vae=True, output_clip=False, output_clipvision=True
        )
        return model, encoder, vae
    weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    return _narrow_model(path, layout), narrow_clip_vision(weights, layout), narrow_vae(weights, layout)


def _narrow_model(path: Path, layout: SVDLayout, disable_dynamic: bool = False) -> Any:
    management, weights = comfy.model_management, comfy.utils.load_torch_file(str(path), safe_load=True)
    config = comfy.supported_models.SVD_img2vid(comfy.model_detection.detect_unet_config(weights, UNET_PREFIX))
    config.unet_config["num_head_channels"] = layout.unet.head
    device, supported = management.get_torch_device(), config.supported_inference_dtypes
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights, UNET_PREFIX),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(weights, UNET_PREFIX),
    )
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
    model = config.get_model(weights, UNET_PREFIX, device=management.unet_offload_device())
    model.load_model_weights(weights, UNET_PREFIX)
    patcher = patcher_class(disable_dynamic)(model, device, management.unet_offload_device())
    # How newer hosts load it once more, as one whose weights stay on the device, say.
    patcher.cached_patcher_init = (_narrow_model, (path, layout))
    return patcher


def narrow_clip_vision(weights: dict[str, torch.Tensor], layout: SVDLayout) -> Any:
    """CLIP_VISION of SVD at a layout's widths, out of a checkpoint's tensors."""
    with tempfile.TemporaryDirectory(prefix="exvideo-") as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(layout.clip.config()), encoding="utf-8")
        encoder = comfy.clip_vision.ClipVisionModel(str(path))
    encoder.load_sd(comfy.clip_vision.convert_to_transformers(weights, CLIP_PREFIX))
    return encoder


def autoencoder(layout: SVDLayout) -> Any:
    """The host's autoencoder with the temporal decoder, at a layout's widths."""
    widths = layout.vae.config()
    return AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": widths},
        decoder_config={
            "target": "comfy.ldm.modules.temporal_ae.VideoDecoder",
            "params": {**widths, "video_kernel_size": [3, 1, 1], "alpha": 0.0},
        },
    ).eval()


def narrow_vae(weights: dict[str, torch.Tensor], layout: SVDLayout) -> Any:
    """VAE of SVD at a layout's widths, out of a checkpoint's tensors."""
    widths, network = layout.vae.config(), autoencoder(layout)
    network.load_state_dict(comfy.utils.state_dict_prefix_replace(weights, {VAE_PREFIX: ""}, filter_keys=True))
    # The host takes widths for image autoencoders only. One of those stands in while it settles everything else:
    # device, dtype, ranges, estimates of memory. Then ours takes its place.
    params = {"embed_dim": widths["z_channels"], "ddconfig": widths}
    loaded = comfy.sd.VAE(sd=AutoencoderKL(**params).state_dict(), config={"params": params})
    loaded.first_stage_model = network.to(loaded.vae_dtype)
    offload_device = comfy.model_management.vae_offload_device()
    loaded.patcher = ModelPatcher(network, load_device=loaded.device, offload_device=offload_device)
    return loaded
