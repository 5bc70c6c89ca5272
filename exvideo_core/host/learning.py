"""Training inside the host's SVD: its own UNet, some of whose weights are parameters for as long as that takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import torch
from comfy.patcher_extension import WrappersMP
from torch import nn

from ..conditioning import clip_pixels
from ..extension import Extension
from ..layers import PositionLayers
from ..types import ExVideoError, LatentShape
from ..unet import ATTENTION_OVERRIDE, extended_unet
from .identity import encoder_identity
from .memory import computes_in, work
from .patch import KEY, require_svd
from .running import encode_clip, encode_frames, require_token


class Denoiser(nn.Module):
    """SVD as a function that can be differentiated, in the host's own classes.

    Args:
        base: the host's model: its UNet is called as it is by the host's samplers.
        positions: the new parts of the extended layers; None for SVD itself.
        budget: bytes of working memory beside what a pass has to keep; None keeps everything, which is fastest.
    """

    def __init__(self, base: Any, positions: PositionLayers | None, budget: int | None):
        super().__init__()
        self.unet, self.positions = base.diffusion_model, positions
        self._base = [base]  # in a list, or the host's whole model would become a part of this one
        self._options: dict[str, Any] = {ATTENTION_OVERRIDE: _torch_attention, "wrappers": {}}
        if positions is not None:
            extended = partial(extended_unet, positions, lambda _latents: work(budget))
            self._options["wrappers"] = {WrappersMP.DIFFUSION_MODEL: {KEY: [extended]}}

    def forward(
        self,
        noised: torch.Tensor,
        sigmas: torch.Tensor,
        images: torch.Tensor,
        tokens: torch.Tensor,
        ids: Sequence[Mapping[str, float]],
    ) -> torch.Tensor:
        """Latents without their noise, as the model sees them, in float32; of several videos of the same length.

        Args:
            noised: latents on the model's own scale, plus σ times noise, [videos · T, 4, H/8, W/8].
            sigmas: noise levels, [videos].
            images: latents of the first frames, on the autoencoder's scale, [videos, 4, H/8, W/8].
            tokens: of the first frames, [videos, 1, D].
            ids: fps, motion_bucket_id and augmentation_level of each video.
        """
        (base,), frames = self._base, len(noised) // len(sigmas)
        y = torch.cat([base.encode_adm(**each) for each in ids])
        sigmas, images, tokens, y = (
            each.repeat_interleave(frames, 0) for each in (sigmas, images, tokens, y.to(noised))
        )
        denoised: torch.Tensor = base.apply_model(
            noised,
            sigmas,
            c_concat=images,
            c_crossattn=tokens,
            y=y,
            num_video_frames=frames,
            transformer_options=dict(self._options),
        )
        return denoised


class Encoder:
    """The host's image encoder and autoencoder of SVD, on clips."""

    def __init__(self, clip_vision: Any, vae: Any):
        self._clip_vision, self._vae = clip_vision, vae
        self.identity = encoder_identity(clip_vision, vae)

    def __call__(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From a clip [T, H, W, 3] in [0, 1]: its latents [T, 4, H/8, W/8], the token [1, 1, D] of its first frame."""
        latents = encode_frames(self._vae, frames)
        return latents, self._token(frames)

    def require_fit(self, model: Any) -> None:
        """Raise ExVideoError unless an SVD model takes the tokens that are made here."""
        # Of a black picture: what an encoder makes is told nowhere, for all kinds that the host has.
        require_token(model, self._token(torch.zeros(1, 8, 8, 3)), "The image encoder", "clip_vision")

    def _token(self, frames: torch.Tensor) -> torch.Tensor:
        return encode_clip(self._clip_vision, partial(clip_pixels, frames[:1]))


def latent_scale(model: Any) -> float:
    """From the autoencoder's latents to the model's."""
    return float(model.model.latent_format.scale_factor)


def computes_in_half(model: Any) -> bool:
    """Whether a pass computes in float16, whose gradients have to be scaled."""
    return computes_in(model) == torch.float16


def training_memory(model: Any, extension: Extension, latent: LatentShape, spread_over: int = 1) -> tuple[int, int]:
    """Bytes of a map of the UNet's first level, and bytes of the device beside weights, masters and optimiser.

    Args:
        spread_over: devices that share parameters, gradients and moments.
    """
    dtype = computes_in(model)
    channels = model.model.model_config.unet_config["model_channels"]
    one_map = channels * latent.frames * latent.height * latent.width * dtype.itemsize
    trained = sum(tensor.numel() for tensor in extension.tensors.values())
    # In float32: parameters, gradients and the two moments of AdamW; where these are spread, a step has all parameters
    # and gradients beside its parts.
    copies = 4 if spread_over == 1 else 2 + 4 / spread_over
    free = comfy.model_management.get_total_memory(model.load_device) - model.model_size() - trained * 4 * copies
    return one_map, max(int(free), 0)


def require_trainable(model: Any) -> None:
    """Raise ExVideoError if a MODEL's weights are quantised: what lies beside them, scales, say, has no gradient, and
    would be taken for that of the parameters in their place."""
    for module in model.model.diffusion_model.modules():
        kinds = {type(parameter) for parameter in module._parameters.values() if parameter is not None}
        if getattr(module, "scale_weight", None) is not None or kinds - {torch.Tensor, nn.Parameter}:
            raise ExVideoError(
                "Post-tuning trains a model whose weights are plain numbers, and those of the connected one are "
                "quantised (scaled float8 or GGUF, say): load the checkpoint as it was released, such as "
                "svd_xt.safetensors."
            )


@contextmanager
def trainable(model: Any, extension: Extension, budget: int | None) -> Iterator[tuple[Denoiser, dict[str, Any]]]:
    """An SVD model that computes with an extension's tensors as parameters; as it was before when this ends.

    Args:
        model: MODEL, loaded onto its device in full, and all others off it. Patches that it has, such as LoRAs, count.
        extension: where training starts. Its tensors are copied, in float32.
        budget: see `Denoiser`.

    Yields:
        The model, and its parameters under the names of an extension file.

    Raises:
        ExVideoError: not an SVD model, one of another width, one whose weights are quantised, or one that the host
            cannot keep on its device.
    """
    require_svd(model)
    require_trainable(model)
    model = _resident(model)
    device, unet = model.load_device, model.model.diffusion_model
    with torch.inference_mode(False), torch.enable_grad():
        parameters, positions = as_parameters(extension, device)
        with swapped(unet, dict(Extension(parameters, extension.num_frames).replaced_weights())):
            yield Denoiser(model.model, positions, budget), parameters


def _resident(model: Any) -> Any:
    """A MODEL whose weights all lie on its device and stay there, where their gradients find them again.

    Raises:
        ExVideoError: the host can only move them to and fro.
    """
    if getattr(model, "is_dynamic", lambda: False)():
        try:
            model = model.clone(disable_dynamic=True)
        except (RuntimeError, TypeError) as error:  # its loader does not say how to load it again; an older host
            raise ExVideoError(
                f"Post-tuning needs a model that stays on its device, and this one cannot ({error}): load it by Load "
                "SVD + ExVideo, or start ComfyUI with --disable-dynamic-vram."
            ) from error
    # As much as the host's own trainer asks for: whatever else is on the device leaves it.
    comfy.model_management.load_models_gpu([model], memory_required=1e20, force_full_load=True)
    # Under --novram the host moves them all the same, and patches them on the way: those that are trained, too.
    model.partially_load(model.load_device, 1e32)
    return model


def as_parameters(extension: Extension, device: torch.device) -> tuple[dict[str, nn.Parameter], PositionLayers]:
    """An extension's tensors as parameters in float32, copied, and the layers of those that SVD does not have."""
    parameters = {
        key: nn.Parameter(tensor.detach().to(device, torch.float32, copy=True))
        for key, tensor in extension.tensors.items()
    }
    weights = list(Extension(parameters, extension.num_frames).position_weights())
    positions = PositionLayers(weights, comfy.ops.manual_cast)
    for layer, own in zip(positions, weights, strict=True):
        # The very parameters, which the layers would otherwise wrap into others.
        layer.table.weight, layer.conv.weight, layer.conv.bias = own
    return parameters, positions


@contextmanager
def swapped(unet: nn.Module, trained: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """A UNet on other parameters: those to be trained, and for all others such as a gradient can pass.

    Raises:
        ExVideoError: parameters that do not fit the UNet.
    """
    known = dict(unet.named_parameters())
    for key, tensor in trained.items():
        if key not in known or known[key].shape != tensor.shape:
            got = "nothing" if key not in known else f"{list(known[key].shape)}"
            raise ExVideoError(
                f"This ExVideo extension does not fit the model: {key} is {list(tensor.shape)} in the extension "
                f"and {got} in the model. Use the base it belongs to, such as svd_xt.safetensors."
            )
    before: list[tuple[nn.Module, dict[str, Any], Any]] = []
    try:
        for path, module in unet.named_modules():
            own = {name: known[f"{path}.{name}"] for name in module._parameters if f"{path}.{name}" in known}
            if not own:
                continue
            casts = getattr(module, "comfy_cast_weights", None)
            before.append((module, dict(module._parameters), casts))
            for name, parameter in own.items():
                module._parameters[name] = trained.get(f"{path}.{name}", _frozen(parameter))
            if casts is not None and any(f"{path}.{name}" in trained for name in own):
                module.comfy_cast_weights = True  # parameters are float32, the pass may be half
        yield
    finally:
        for module, parameters, casts in before:
            module._parameters.update(parameters)
            if casts is not None:
                module.comfy_cast_weights = casts


def _frozen(parameter: nn.Parameter) -> nn.Parameter:
    """The same memory as a tensor that a gradient can pass: what nodes load are inference tensors."""
    alias = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    alias.set_(parameter.untyped_storage(), parameter.storage_offset(), parameter.shape, parameter.stride())
    return nn.Parameter(alias, requires_grad=False)


def _torch_attention(_function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """torch's own attention, which has a gradient; of the host's others not all have."""
    attention: torch.Tensor = comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
    return attention
