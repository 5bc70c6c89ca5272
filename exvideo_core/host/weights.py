"""Weights of the host's modules, lent to arithmetic that is not the host's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ops
import torch

from ..chunked import is_whole


class Lent:
    """Weight and bias of a module as they act on x: patched, cast, and where x is; for the length of a `with`.

    Not longer: newer hosts keep what is lent on the device until it is given back, and what they stream there lies in
    a buffer that the next weights may be streamed to.
    """

    def __init__(self, module: Any, x: torch.Tensor):
        self._module, self._lent = module, comfy.ops.cast_bias_weight(module, x, offloadable=True)

    def __enter__(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias, _ = self._lent
        return weight, bias

    def __exit__(self, *_error: object) -> None:
        comfy.ops.uncast_bias_weight(self._module, *self._lent)


@contextmanager
def at_hand(x: torch.Tensor, *modules: Any) -> Iterator[None]:
    """Keep what the layers of these modules do to tensors like x where x is, for the length of a `with`.

    What waits in main memory, or for its patches, the host fetches and patches at each call: for each chunk, where a
    layer works in chunks. Here that is done once, and the layers have the results as their weights meanwhile.
    """
    with ExitStack() as kept:
        for layer in (layer for module in modules for layer in module.modules()):
            if _waits(layer, x) and (copies := _copies(layer, x)):
                kept.enter_context(_with_weights(layer, copies))
        yield


def _waits(layer: Any, x: torch.Tensor) -> bool:
    """Whether a layer's weight is elsewhere, or not as it is to act. Quantized ones have products of their own."""
    weight = getattr(layer, "weight", None)
    if weight is None or not isinstance(layer, comfy.ops.CastWeightBiasOp) or not is_whole(weight):
        return False
    return weight.device != x.device or bool(layer.weight_function or layer.bias_function)


def _copies(layer: Any, x: torch.Tensor) -> dict[str, Any]:
    """Weight and bias where x is, as they are to act; none where the host finds them there each time anyway."""
    with Lent(layer, x) as (weight, bias):
        # Newer hosts sign what they have found room for on the device.
        if getattr(layer, "_v_signature", None) is not None:
            return {}
        return {
            name: None if tensor is None else torch.nn.Parameter(tensor.clone(), False)
            for name, tensor in (("weight", weight), ("bias", bias))
        }


@contextmanager
def _with_weights(layer: Any, weights: dict[str, Any]) -> Iterator[None]:
    """Let a layer have other weights, which are as they are to act."""
    parameters = layer._parameters.copy()
    functions = {name: vars(layer).get(name) for name in ("weight_function", "bias_function")}
    try:
        layer._parameters.update(weights)
        layer.weight_function, layer.bias_function = [], []
        yield
    finally:
        layer._parameters.update(parameters)
        for name, before in functions.items():
            vars(layer).pop(name)
            if before is not None:
                setattr(layer, name, before)
