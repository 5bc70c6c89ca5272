"""Running the host's models: its image encoder, its autoencoder, its sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ..extension import TRAINED_FRAMES
from ..pinning import FADE, draw_to_pinned, pinned_frames
from ..types import LATENT_CHANNELS, ExVideoError
from .files import progress
from .patch import KEY
from .telling import warn


def encode_clip(clip_vision: Any, preprocess: Callable[[int, list[float], list[float]], torch.Tensor]) -> torch.Tensor:
    """The image token of pixels prepared for this CLIP vision model: [1, 1, D].

    `preprocess` is given the model's image size, mean and deviation, because the host's own preparation crops
    the picture and rounds it to 8 bits.
    """
    pixels = preprocess(clip_vision.image_size, clip_vision.image_mean, clip_vision.image_std)
    comfy.model_management.load_models_gpu([clip_vision.patcher])
    outputs = clip_vision.model(pixel_values=pixels.to(clip_vision.load_device).float(), intermediate_output=-2)
    return outputs[2].to(comfy.model_management.intermediate_device())[:, None]


def require_token(model: Any, token: torch.Tensor, source: str, place: str) -> None:
    """Raise ExVideoError unless an image token [1, 1, D] is as wide as an SVD model takes it.

    Args:
        source: what it comes from, to be told.
        place: where another image encoder can be connected.
    """
    width, wanted = token.shape[-1], model.model.model_config.unet_config["context_dim"]
    if width != wanted:
        raise ExVideoError(
            f"{source} describes a picture by {width} numbers, but this model takes {wanted}: connect the image "
            f"encoder of the SVD checkpoint at {place}."
        )


def encode(vae: Any, frames: torch.Tensor) -> torch.Tensor:
    """Latents [n, 4, H/8, W/8] of frames [n, H, W, 3].

    Raises:
        ExVideoError: the autoencoder is another model's.
    """
    latents: torch.Tensor = vae.encode(frames)
    if latents.ndim != 4 or latents.shape[1] != LATENT_CHANNELS:
        raise ExVideoError(
            f"SVD's autoencoder makes latents of {LATENT_CHANNELS} channels, but the connected VAE made some of shape "
            f"{tuple(latents.shape)}: connect the VAE of the SVD checkpoint."
        )
    return latents


def encode_frames(
    vae: Any, frames: torch.Tensor, prepare: Callable[[torch.Tensor], torch.Tensor] = lambda frame: frame
) -> torch.Tensor:
    """Latents of frames [T, H, W, 3], encoded one at a time, so that it can be seen and interrupted.

    Of several the host would take as many together as memory has room for, and the last digits would depend on that.

    Args:
        prepare: makes what is encoded of each, [1, H, W, 3].
    """
    update = progress()
    latents: list[torch.Tensor] = []
    for number in range(len(frames)):
        latents.append(encode(vae, prepare(frames[number : number + 1])))
        update(number + 1, len(frames))
    return torch.cat(latents)


class StepStore(Protocol):
    """Keeps the noised latents at the beginning of the last step."""

    def load_step(self) -> tuple[int, torch.Tensor] | None: ...

    def save_step(self, step: int, latents: torch.Tensor) -> None: ...


def _kept_euler(steps: StepStore) -> Callable[..., torch.Tensor]:
    """The host's Euler sampler, going on at the step that is kept."""

    def sample(
        model: Any,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: Any = None,
        callback: Any = None,
        disable: Any = None,
    ) -> torch.Tensor:
        first, begun = steps.load_step() or (0, x)

        def told(step: dict[str, Any]) -> None:
            steps.save_step(first + step["i"], step["x"].cpu())
            if callback is not None:
                callback({**step, "i": first + step["i"]})

        sampled: torch.Tensor = comfy.k_diffusion.sampling.sample_euler(
            model, begun.to(x), sigmas[first:], extra_args=extra_args, callback=told, disable=disable
        )
        return sampled

    return sample


def _drawn_to_pinned(model: Any, latent: Mapping[str, Any]) -> Any:
    """A model that leads the frames next to a LATENT's pinned ones to them."""
    pinned, fade = pinned_frames(latent), latent[FADE]
    known = model.model.process_latent_in(latent["samples"])
    model = model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: draw_to_pinned(args["denoised"], known, pinned, fade))
    return model


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
    callback: Callable[..., None] | None = None,
    steps: StepStore | None = None,
) -> torch.Tensor:
    """The host's Euler sampler over our noise levels, with the host's previews, masks, offloading and interrupts.

    Args:
        latent: LATENT to start from; its `noise_mask`, where there is one, pins frames, and its `pinning.FADE`, where
            there is one, leads others to them.
        guidance: takes the place of plain guidance by `cfg`.
        callback: told of each step; by default it shows progress and previews at the node.
        steps: where each step is kept as it begins, and from which to go on.

    Raises:
        ExVideoError: conditioning by another model's image encoder.

    Returns:
        Latents of the shape of `noise`, on the host's intermediate device.
    """
    if KEY not in model.attachments and len(noise) > TRAINED_FRAMES:
        warn(
            f"ExVideo samples {len(noise)} frames with SVD alone, which knows {TRAINED_FRAMES}. Choose an extension in "
            "Load SVD + ExVideo, or connect Apply ExVideo."
        )
    require_token(model, positive[0][0], "The conditioning", "clip_vision, where it is made")
    if guidance is not None:
        if "sampler_cfg_function" in model.model_options:
            warn(
                "ExVideo guides from min_cfg to max_cfg, in the place of the guidance that another node has put on the "
                "model (RescaleCFG, say): set both to one number to keep that."
            )
        model = model.clone()
        # With a cfg of 1 the host would skip the unconditional pass, which the guidance of other frames needs.
        model.set_model_sampler_cfg_function(guidance, disable_cfg1_optimization=True)
    if latent.get(FADE):
        model = _drawn_to_pinned(model, latent)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    samples = guider.sample(
        noise,
        latent["samples"],
        comfy.samplers.sampler_object("euler") if steps is None else comfy.samplers.KSAMPLER(_kept_euler(steps)),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=callback or latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    if not samples.isfinite().all():
        warn(
            "ExVideo sampled numbers that are no longer finite (NaN), and the video will be black: lower the guidance "
            "and the strengths of extension and LoRAs, or start ComfyUI with --fp32-unet."
        )
    return samples.to(comfy.model_management.intermediate_device())
