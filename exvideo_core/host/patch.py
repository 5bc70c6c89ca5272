"""The patch: an extension onto ComfyUI's own SVD model."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import comfy.model_base
import comfy.model_patcher
import comfy.ops
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ..budget import check_setting
from ..extension import Extension, check_fit
from ..layers import PositionLayers
from ..types import ExVideoError
from ..unet import COMPILE, POSITIONS, extended_unet
from .memory import Memory
from .windows import one_noise_level, window_conditions

KEY = "exvideo"
"""Our name among a model's wrappers, additional models and attachments."""
_WIDTHS = 64
"""Ways to compile a function: SVD's ResNet blocks have 12 widths, and chunks can be of one, of few and of many."""

# Newer hosts have a patcher that streams weights; its name is the one to ask for.
ModelPatcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


def patcher_class(disable_dynamic: bool) -> Any:
    """What newer hosts want of what loads a model once more: whether its weights are to stay on the device."""
    return comfy.model_patcher.ModelPatcher if disable_dynamic else ModelPatcher


def require_svd(model: Any) -> None:
    """Raise ExVideoError unless a MODEL is Stable Video Diffusion (image to video)."""
    base = model.model
    other = (comfy.model_base.SV3D_u, comfy.model_base.SV3D_p)
    if not isinstance(base, comfy.model_base.SVD_img2vid) or isinstance(base, other):
        raise ExVideoError(
            f"ExVideo extends Stable Video Diffusion, but the connected model is {type(base).__name__}: "
            "load an SVD checkpoint such as svd_xt.safetensors."
        )


def require_fit(model: Any, extension: Extension) -> None:
    """Raise ExVideoError unless an extension is of an SVD model's width."""
    parts = (extension.tensors, model.model.diffusion_model.state_dict())
    check_fit("This ExVideo extension", *({key: tuple(t.shape) for key, t in part.items()} for part in parts))


def stored_weight(model: Any, key: str) -> torch.Tensor:
    """A weight of a MODEL as its file had it, whatever is patched on: with its scale, where it was quantized.

    The host's own list of these, `get_key_patches`, stumbles over the scales that newer hosts keep beside weights.
    """
    weight, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
    if key in model.backup:
        weight = model.backup[key].weight
    if key in model.hook_backup:
        weight = model.hook_backup[key][0]
    return weight.detach() if convert is None else convert(weight.detach(), inplace=False)


def base_weights(model: Any) -> Callable[[str], torch.Tensor]:
    """Read access to the UNet weights of an SVD model as its file had them, in 16 bits at least."""
    require_svd(model)

    def weight(key: str) -> torch.Tensor:
        tensor = stored_weight(model, f"diffusion_model.{key}").cpu()
        return tensor if tensor.element_size() > 1 else tensor.to(torch.float16)

    return weight


def apply_extension(model: Any, extension: Extension, strength: float = 1.0, memory: str = "auto") -> Any:
    """Extend an SVD model: a clone on which ComfyUI itself loads, offloads and samples everything.

    The weights that SVD has become patches below LoRAs, which so add on top whether they came before or after, and
    above models merged in before. The new ones are a model of their own beside it. A wrapper around the UNet leads
    each extended layer through `layers.extended_forward` for the length of a call, and leaves nothing behind.

    Args:
        model: MODEL, untouched; an extension applied to it earlier is replaced in the clone.
        extension: of the same width.
        strength: 1 is the extension, 0 the base with bounced positions; between, all weights blend linearly.
        memory: how much working memory a pass may take, a name in `budget.BUDGETS`.

    Raises:
        ExVideoError: not an SVD model, one of another width, or no such setting of memory.
    """
    require_svd(model)
    check_setting(memory)
    require_fit(model, extension)

    clone = without_extension(model)
    patches: dict[str, tuple[Any, ...]] = {}
    if strength != 0:
        for name, weight in extension.replaced_weights():
            key = f"diffusion_model.{name}"
            others, below = clone.patches.get(key, []), _place(model, key)
            # The host's patch: weight of the patch, the patch, weight of what it is added to, offset, function.
            patches[key] = (strength, (weight,), 1 - strength, None, None)
            clone.patches[key] = [*others[:below], patches[key], *others[below:]]
    clone.attachments[KEY] = patches

    positions = PositionLayers(extension.position_weights(strength), comfy.ops.manual_cast)
    beside = ModelPatcher(positions, model.load_device, model.offload_device)
    # By this newer hosts make another of it for another GPU, which `_innermost` finds.
    beside.cached_patcher_init = (_another, (positions, model.load_device, model.offload_device))
    clone.set_additional_models(KEY, [beside])
    doing = Memory(memory, model.model.model_config.unet_config["model_channels"], beside)
    # A compiler would not see where layers are led while it traces the UNet, so this part stays as it is; what
    # does the arithmetic of the chunks inside is compiled by itself.
    uncompiled: Callable[..., Any] = torch.compiler.disable(doing.retrying)  # type: ignore[no-untyped-call]
    ours: dict[str, list[Callable[..., Any]]] = {
        WrappersMP.PREPARE_SAMPLING: [_innermost, partial(doing.prepared, positions)],
        WrappersMP.PREDICT_NOISE: [one_noise_level],
        WrappersMP.CALC_COND_BATCH: [_compiling, partial(window_conditions, positions)],
        WrappersMP.DIFFUSION_MODEL: [uncompiled, partial(extended_unet, positions, doing)],
    }
    for place, wrappers in ours.items():
        clone.remove_wrappers_with_key(place, KEY)
        for wrapper in wrappers:
            clone.add_wrapper_with_key(place, KEY, wrapper)
    clone.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, KEY)
    clone.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, doing.give_back)
    return clone


def _another(positions: PositionLayers, load_device: Any, offload_device: Any, disable_dynamic: bool = False) -> Any:
    """The same new parts again, with weights of their own, as a model of the host's."""
    again = PositionLayers(positions.weights(), comfy.ops.manual_cast)
    return patcher_class(disable_dynamic)(again, load_device, offload_device)


def without_extension(model: Any) -> Any:
    """A clone of a MODEL on which no extension's weights are; what else an extension brings is as it was."""
    clone = model.clone()
    for key, earlier in clone.attachments.pop(KEY, {}).items():
        others = [patch for patch in clone.patches.pop(key, []) if patch is not earlier]
        if others:
            clone.patches[key] = others
    clone.remove_additional_models(KEY)
    clone.patches_uuid = uuid4()
    return clone


def _place(model: Any, key: str) -> int:
    """How many of a weight's patches an extension's goes above: where an earlier one is, else over all merged models.

    A merged model scales down what is below it, and an extension there would be diluted.
    """
    earlier, below = model.attachments.get(KEY, {}).get(key), 0
    for number, patch in enumerate(model.patches.get(key, [])):
        if patch is earlier:
            return number
        added, _, kept, *_ = patch
        # Where nothing is added, a node multiplies the weight, whatever it is.
        if added != 0 and kept != 1:
            below = number + 1
    return below


def _innermost(
    executor: Any, model: Any, noise_shape: Any, conds: Any, model_options: Any = None, **kwargs: Any
) -> Any:
    """Put our way to calculate predictions, one after the other, inside all others', whoever came first; and the new
    parts of each copy of the UNet, of which newer hosts make one for each GPU, where its passes find them.

    A wrapper around the host's preparation, when the options are the run's own. What others do there is meant for all
    predictions of a step: EasyCache decides there once whether to skip the step.
    """
    options = (model_options or {}).get("transformer_options", {})
    by_key = options.get("wrappers", {}).get(WrappersMP.CALC_COND_BATCH, {})
    if KEY in by_key:
        by_key[KEY] = by_key.pop(KEY)  # the last is the innermost
    options[POSITIONS] = {
        copy.model.diffusion_model: part.model
        for copy in (model, *model.get_nested_additional_models())
        for part in copy.get_additional_models_with_key(KEY)
    }
    return executor(model, noise_shape, conds, model_options=model_options, **kwargs)


def _compiling(executor: Any, model: Any, conds: Any, x: Any, timestep: Any, options: Any, *args: Any) -> Any:
    """Tell the UNet's layers when and how the user wants the model compiled.

    A wrapper around the host's calculation of predictions.
    """
    wanted = options.get("torch_compile_kwargs")
    if wanted is None:
        return executor(model, conds, x, timestep, options, *args)
    inner = {**options.get("transformer_options", {}), COMPILE: partial(torch.compile, **wanted)}
    options = {**options, "transformer_options": inner}
    # One function serves all layers, and a compiler gives up on one that it has to compile for many widths.
    with importlib.import_module("torch._dynamo").config.patch(cache_size_limit=_WIDTHS):
        return executor(model, conds, x, timestep, options, *args)
