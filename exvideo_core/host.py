"""The seam: everything the core needs of ComfyUI, and the only file of the core that imports it."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import comfy.clip_vision
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.cli_args import args as host_arguments
from comfy.ldm.models.autoencoder import AutoencoderKL, AutoencodingEngine
from comfy.patcher_extension import WrappersMP
from comfyui_version import __version__ as host_version

from .extension import Extension
from .files import open_tensors
from .layers import PositionLayers, extended_unet
from .svd import CLIP_PREFIX, UNET_PREFIX, VAE_PREFIX, SVDLayout, read_layout
from .types import ExVideoError

OLDEST_HOST = "0.3.75"
MODEL_FOLDER = "exvideo"
OLDER_FOLDERS = ("diffsynth/ExVideo-SVD-128f-v1", "stable_video_diffusion")
"""Where the ExVideo packs before this one had users put the same file."""
KEY = "exvideo"
"""Our name among a model's wrappers, additional models and attachments."""

log = logging.getLogger(__name__)
# Newer hosts have a patcher that streams weights; its name is the one to ask for.
ModelPatcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
throw_if_interrupted = comfy.model_management.throw_exception_if_processing_interrupted


def require_version() -> None:
    """Raise ExVideoError on a ComfyUI older than we support."""
    this, oldest = ([int(n) for n in re.findall(r"\d+", version)[:3]] for version in (host_version, OLDEST_HOST))
    if this < oldest:
        raise ExVideoError(f"ExVideo needs ComfyUI {OLDEST_HOST} or newer, this is {host_version}: please update it.")


# --- files ---------------------------------------------------------------------------------------------------


def register_model_folder() -> None:
    """Add `models/exvideo` to the host's model folders, and the older packs' folders where they exist."""
    folder = Path(folder_paths.models_dir, MODEL_FOLDER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning(
            "ExVideo could not create %s (%s): put extensions into a folder of extra_model_paths.", folder, error
        )
    for path in (folder, *(Path(folder_paths.models_dir, name) for name in OLDER_FOLDERS)):
        if path.is_dir():
            folder_paths.add_model_folder_path(MODEL_FOLDER, str(path))
    # The host gives a new folder an empty set of file types, which would list nothing, or everything.
    paths, _ = folder_paths.folder_names_and_paths.get(MODEL_FOLDER, ([str(folder)], set()))
    folder_paths.folder_names_and_paths[MODEL_FOLDER] = (paths, {".safetensors"})


def model_names(folder: str) -> list[str]:
    return folder_paths.get_filename_list(folder)


def model_path(folder: str, name: str) -> Path:
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise ExVideoError(
            f"There is no {name} in ComfyUI's {folder} folder: choose another file, or refresh the page."
        )
    return Path(path)


class Destination(NamedTuple):
    """Where a file goes: its path, and its name and subfolder as the host's page and history tell it."""

    path: Path
    name: str
    subfolder: str


def output_destination(prefix: str, suffix: str, width: int, height: int) -> Destination:
    """The next free numbered name in the output folder, by the host's naming."""
    folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    name = f"{stem}_{counter:05}_{suffix}"
    return Destination(Path(folder, name), name, subfolder)


def graph_metadata(prompt: Any, extra_pnginfo: Mapping[str, Any] | None) -> dict[str, str]:
    """What a file says of the graph that made it; empty where the user started ComfyUI with --disable-metadata."""
    if host_arguments.disable_metadata:
        return {}
    texts = {} if prompt is None else {"prompt": prompt}
    return {key: json.dumps(value) for key, value in {**texts, **(extra_pnginfo or {})}.items()}


def progress() -> Callable[[int, int], None]:
    """A progress bar at the node: call it with how much is done, and of how much. Each call may be interrupted."""
    bar = comfy.utils.ProgressBar(1)

    def update(done: int, total: int) -> None:
        throw_if_interrupted()
        bar.update_absolute(done, total)

    return update


# --- the patch -----------------------------------------------------------------------------------------------


def require_svd(model: Any) -> None:
    """Raise ExVideoError unless a MODEL is Stable Video Diffusion (image to video)."""
    base = model.model
    other = (comfy.model_base.SV3D_u, comfy.model_base.SV3D_p)
    if not isinstance(base, comfy.model_base.SVD_img2vid) or isinstance(base, other):
        raise ExVideoError(
            f"ExVideo extends Stable Video Diffusion, but the connected model is {type(base).__name__}: "
            "load an SVD checkpoint such as svd_xt.safetensors."
        )


def base_weights(model: Any) -> Callable[[str], torch.Tensor]:
    """Read access to the UNet weights of an SVD model as its file had them, whatever is patched on."""
    require_svd(model)
    patches = model.get_key_patches("diffusion_model.")

    def weight(key: str) -> torch.Tensor:
        tensor, _convert = patches[f"diffusion_model.{key}"][0]
        return tensor.detach().cpu()

    return weight


def apply_extension(model: Any, extension: Extension, strength: float = 1.0) -> Any:
    """Extend an SVD model: a clone on which ComfyUI itself loads, offloads and samples everything.

    The weights that SVD has become patches at the front of their lists, so that LoRAs add on top whether they
    came before or after. The new ones are a model of their own beside it. A wrapper around the UNet leads each
    extended layer through `layers.extended_forward` for the length of a call, and leaves nothing behind.

    Args:
        model: MODEL, untouched; an extension applied to it earlier is replaced in the clone.
        extension: of the same width.
        strength: 1 is the extension, 0 the base with bounced positions; between, all weights blend linearly.

    Raises:
        ExVideoError: not an SVD model, or one of another width.
    """
    require_svd(model)
    shapes = {key: tensor.shape for key, tensor in model.model.diffusion_model.state_dict().items()}
    for key, weight in extension.replaced_weights():
        if shapes.get(key) != weight.shape:
            got = "nothing" if key not in shapes else f"{list(shapes[key])}"
            raise ExVideoError(
                f"This ExVideo extension does not fit the model: {key} is {list(weight.shape)} in the extension "
                f"and {got} in the model. Use the base it was trained on, such as svd_xt.safetensors."
            )

    clone = model.clone()
    for key, earlier in clone.attachments.pop(KEY, {}).items():
        others = [patch for patch in clone.patches.pop(key, []) if patch is not earlier]
        if others:
            clone.patches[key] = others
    patches: dict[str, tuple[Any, ...]] = {}
    if strength != 0:
        for key, weight in extension.replaced_weights():
            # The host's patch: weight of the patch, the patch, weight of what it is added to, offset, function.
            patch = patches[f"diffusion_model.{key}"] = (strength, (weight,), 1 - strength, None, None)
            clone.patches[f"diffusion_model.{key}"] = [patch, *clone.patches.get(f"diffusion_model.{key}", [])]
    clone.attachments[KEY] = patches
    clone.patches_uuid = uuid4()

    positions = PositionLayers(extension.position_weights(strength), comfy.ops.manual_cast)
    clone.set_additional_models(KEY, [ModelPatcher(positions, model.load_device, model.offload_device)])
    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, partial(extended_unet, positions))
    return clone


# --- running models ------------------------------------------------------------------------------------------


def encode_clip(clip_vision: Any, preprocess: Callable[[int, list[float], list[float]], torch.Tensor]) -> torch.Tensor:
    """The image token of pixels prepared for this CLIP vision model: [1, 1, D].

    `preprocess` is given the model's image size, mean and deviation, because the host's own preparation crops
    the picture and rounds it to 8 bits.
    """
    pixels = preprocess(clip_vision.image_size, clip_vision.image_mean, clip_vision.image_std)
    comfy.model_management.load_models_gpu([clip_vision.patcher])
    outputs = clip_vision.model(pixel_values=pixels.to(clip_vision.load_device).float(), intermediate_output=-2)
    return outputs[2].to(comfy.model_management.intermediate_device())[:, None]


def encode_frames(vae: Any, frames: torch.Tensor, at_once: int = 8) -> torch.Tensor:
    """Latents of frames [T, H, W, 3], encoded a few at a time so that it can be seen and interrupted."""
    update = progress()
    latents: list[torch.Tensor] = []
    for start in range(0, len(frames), at_once):
        latents.append(vae.encode(frames[start : start + at_once]))
        update(min(start + at_once, len(frames)), len(frames))
    return torch.cat(latents)


def frame_decoder(vae: Any, latents: torch.Tensor, window: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A decoder of windows of this clip: latents [n, 4, h, w] → unclipped frames [n, H, W, 3] of the VAE's scale."""
    one_frame = vae.memory_used_decode((1, *latents.shape[1:]), vae.vae_dtype)
    needed = one_frame * min(window, len(latents))
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed)

    def decode(some: torch.Tensor) -> torch.Tensor:
        frames = vae.first_stage_model.decode(some.to(vae.device, vae.vae_dtype))
        return frames.to(vae.output_device).movedim(1, -1)

    return decode


def sample_euler(
    model: Any,
    positive: Any,
    negative: Any,
    noise: torch.Tensor,
    latent: Mapping[str, Any],
    sigmas: torch.Tensor,
    cfg: float,
    guidance: Callable[[Mapping[str, Any]], torch.Tensor] | None,
    seed: int,
) -> torch.Tensor:
    """The host's Euler sampler over our noise levels, with the host's previews, masks, offloading and interrupts.

    Args:
        latent: LATENT to start from; its `noise_mask`, where there is one, pins frames.
        guidance: takes the place of plain guidance by `cfg`.

    Returns:
        Latents of the shape of `noise`, on the host's intermediate device.
    """
    if guidance is not None:
        model = model.clone()
        # With a cfg of 1 the host would skip the unconditional pass, which the guidance of other frames needs.
        model.set_model_sampler_cfg_function(guidance, disable_cfg1_optimization=True)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    samples = guider.sample(
        noise,
        latent["samples"],
        comfy.samplers.sampler_object("euler"),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return samples.to(comfy.model_management.intermediate_device())


# --- checkpoints ---------------------------------------------------------------------------------------------


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
        model, _, vae, clip_vision, *_ = comfy.sd.load_checkpoint_guess_config(
            str(path), output_vae=True, output_clip=False, output_clipvision=True
        )
        return model, clip_vision, vae
    weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    return _narrow_model(weights, layout), _narrow_clip_vision(weights, layout), _narrow_vae(weights, layout)


def _narrow_model(weights: dict[str, torch.Tensor], layout: SVDLayout) -> Any:
    management = comfy.model_management
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
    return ModelPatcher(model, load_device=device, offload_device=management.unet_offload_device())


def _narrow_clip_vision(weights: dict[str, torch.Tensor], layout: SVDLayout) -> Any:
    with tempfile.TemporaryDirectory(prefix="exvideo-") as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(layout.clip.config()), encoding="utf-8")
        clip_vision = comfy.clip_vision.ClipVisionModel(str(path))
    clip_vision.load_sd(comfy.clip_vision.convert_to_transformers(weights, CLIP_PREFIX))
    return clip_vision


def _narrow_vae(weights: dict[str, torch.Tensor], layout: SVDLayout) -> Any:
    widths = layout.vae.config()
    network = AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": widths},
        decoder_config={
            "target": "comfy.ldm.modules.temporal_ae.VideoDecoder",
            "params": {**widths, "video_kernel_size": [3, 1, 1], "alpha": 0.0},
        },
    ).eval()
    network.load_state_dict(comfy.utils.state_dict_prefix_replace(weights, {VAE_PREFIX: ""}, filter_keys=True))
    # The host takes widths for image autoencoders only. One of those stands in while it settles everything else:
    # device, dtype, ranges, estimates of memory. Then ours takes its place.
    params = {"embed_dim": widths["z_channels"], "ddconfig": widths}
    vae = comfy.sd.VAE(sd=AutoencoderKL(**params).state_dict(), config={"params": params})
    vae.first_stage_model = network.to(vae.vae_dtype)
    offload_device = comfy.model_management.vae_offload_device()
    vae.patcher = ModelPatcher(network, load_device=vae.device, offload_device=offload_device)
    return vae
