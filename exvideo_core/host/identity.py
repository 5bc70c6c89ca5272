"""Which models a long run was begun with: what decides its outcome, whatever is loaded or patched in at the moment."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ..files import fingerprint
from .patch import KEY, stored_weight

_DEPTH = 12
"""So many levels of what others hang on a model are looked at."""


def model_identity(model: Any) -> str:
    """A text that differs between MODELs of other weights, extensions, LoRAs, strengths or patches of other nodes.

    Clones share their weights, and whichever was sampled with last has its own patched in. So this reads the weights
    as they were before, and each patch from where the host keeps it. Of patches that are code, it knows the name and
    the numbers, of objects what they were made with.
    """
    # `model_sampling` is left out: where it is another's, it is among the patched objects.
    names = (name for name, _ in model.model.named_parameters() if name.startswith("diffusion_model."))
    weights = {name: stored_weight(model, name) for name in names}
    parts = {f"{i} {key}": tensor for i, each in enumerate(_added(model)) for key, tensor in each.items()}
    patches = {
        f"{key} {i}": tensor for key, some in sorted(model.patches.items()) for i, tensor in enumerate(_tensors(some))
    }
    numbers = [(key, list(_numbers(some))) for key, some in sorted(model.patches.items())]
    wrappers = {
        place: {key: some for key, some in by_key.items() if key != KEY} for place, by_key in model.wrappers.items()
    }
    code = _described([model.object_patches, model.model_options, wrappers, list(_bypassing(model))])
    digest = hashlib.sha256(repr((numbers, code)).encode()).hexdigest()[:16]
    return " ".join([fingerprint(weights), fingerprint(parts), fingerprint(patches), digest])


def encoder_identity(clip_vision: Any, vae: Any) -> str:
    """A text that differs between image encoders and autoencoders of other weights."""
    return " ".join(fingerprint(network.state_dict()) for network in (clip_vision.model, vae.first_stage_model))


def _added(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    for part in model.get_nested_additional_models():
        yield part.model.state_dict()


def _bypassing(model: Any) -> Iterator[Any]:
    """LoRAs that leave the weights alone, which newer hosts keep with what applies them: places, strengths, tensors.

    The tensors as they are once they were used: the host then brings them to the model's own precision.
    """
    for key, injections in sorted(model.injections.items()):
        for inject in (injection.inject for injection in injections):
            yield [key, inject]
            for owner in _cells(inject):
                for place, (adapter, strength) in sorted(getattr(owner, "adapters", {}).items()):
                    tensors = [tensor.to(model.model.get_dtype()) for tensor in _tensors(adapter)]
                    yield [place, strength, tensors, list(_numbers(getattr(adapter, "weights", ())))]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "weights"):  # how the host keeps a LoRA
        yield from _tensors(value.weights)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield float(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif hasattr(value, "weights"):  # a LoRA's alpha is among them
        yield from _numbers(value.weights)


def _described(value: Any, depth: int = _DEPTH) -> Any:
    """What tells a value from others, the same in another process: no addresses, and nothing that counts on."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return fingerprint({"": value})
    if depth:
        below = partial(_described, depth=depth - 1)
        if isinstance(value, Mapping):
            # What is empty is as if it were not there.
            return sorted((str(key), below(item)) for key, item in value.items() if not _is_empty(item))
        if isinstance(value, (list, tuple)):
            return [below(item) for item in value]
        if isinstance(value, partial):
            return [below(value.func), below(value.args), below(value.keywords)]
        if inspect.ismethod(value):
            return [below(value.__func__), below(value.__self__)]
        if inspect.isfunction(value):
            return [value.__module__, value.__qualname__, below(value.__defaults__), below(_enclosed(value))]
        if isinstance(value, torch.nn.Module):
            # Buffers, such as the noise levels of another sampling: parameters may be the patched ones. And what it is
            # derived from, such as the kind of prediction.
            kinds = [kind.__qualname__ for kind in type(value).__mro__]
            numbers = {name: each for name, each in vars(value).items() if isinstance(each, float)}
            return [kinds, sorted(numbers.items()), fingerprint(dict(value.named_buffers()))]
        if settings := _settings(value):
            return [_name(value), below(settings)]
    return _name(value)


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _settings(value: Any) -> dict[str, Any]:
    """What an object was made with and keeps under the same names; what it counts and caches has others, mostly."""
    if isinstance(value, ModelPatcher):  # its size is known once it was loaded
        return {}
    with suppress(TypeError, ValueError):  # made by code that is not Python's, or keeps nothing
        kept = {name: vars(value).get(name) for name in inspect.signature(type(value)).parameters}
        return {name: some for name, some in kept.items() if _is_fixed(some) or is_dataclass(some)}
    return {}


def _enclosed(function: Any) -> list[Any]:
    """What a function knows from where it was made: the settings of the node that put it there, mostly.

    Without what may change while the function works: lists, dictionaries, objects.
    """
    return [value for value in _cells(function) if _is_fixed(value)]


def _cells(function: Any) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # empty as yet
            yield cell.cell_contents


def _is_fixed(value: Any) -> bool:
    # A dictionary of tuples holds settings, as FreeU's does; one that something is counted in does not.
    tuples = isinstance(value, dict) and bool(value) and all(isinstance(item, tuple) for item in value.values())
    return tuples or isinstance(value, (int, float, str, tuple, partial)) or callable(value)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (Mapping, list, tuple)) and all(map(_is_empty, _items(value))))


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, Mapping) else value
