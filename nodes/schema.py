"""What the nodes' schemas share: the socket, the category, inputs that several nodes have, newer hosts' extras."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

from ..exvideo_core import host

ExVideo = io.Custom("EXVIDEO")
CATEGORY = "ExVideo"
MAX_FRAMES = 16384
MAX_SEED = 0xFFFFFFFFFFFFFFFF

_SCHEMA_FIELDS = inspect.signature(io.Schema).parameters


def schema(*, search_aliases: list[str], **fields: Any) -> io.Schema:
    """A schema of our category; search aliases reach the hosts that know them."""
    if "search_aliases" in _SCHEMA_FIELDS:
        fields["search_aliases"] = search_aliases
    return io.Schema(category=CATEGORY, **fields)


def advanced(input_type: Any, *args: Any, **fields: Any) -> Any:
    """An input for experts, folded away on the hosts that know how."""
    if "advanced" in inspect.signature(input_type.Input).parameters:
        fields["advanced"] = True
    return input_type.Input(*args, **fields)


def extension_input() -> Any:
    return io.Combo.Input(
        "exvideo_name",
        options=host.model_names(host.MODEL_FOLDER),
        tooltip="The ExVideo extension, from models/exvideo: model.fp16.safetensors of ECNU-CILab/ExVideo-SVD-128f-v1.",
    )


def seed_input(of: str) -> Any:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=True,
        tooltip=f"Seed of {of}. The same seed gives the same video on the same machine and settings.",
    )
