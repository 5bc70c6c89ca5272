"""What the nodes' schemas share: the socket, the category, inputs that several nodes have, newer hosts' extras."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

from ..exvideo_core import host
from ..exvideo_core.budget import BUDGETS
from ..exvideo_core.formats import offered_formats

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


def extension_input(*others: str) -> Any:
    """The choice of an extension's file, or of `others` than files."""
    return io.Combo.Input(
        "exvideo_name",
        options=[*host.model_names(host.MODEL_FOLDER), *others],
        tooltip="The ExVideo extension, from models/exvideo: model.fp16.safetensors of ECNU-CILab/ExVideo-SVD-128f-v1.",
    )


def memory_input() -> Any:
    return advanced(
        io.Combo,
        "memory",
        options=list(BUDGETS),
        default="auto",
        # Not in the contract, so that clients who know only that may leave it out.
        optional=True,
        tooltip="Working memory of a pass: auto takes what is free up to 2 GiB, low 256 MiB. The video is the same "
        "but for rounding; less is slower.",
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


def fps_input(tooltip: str) -> Any:
    return io.Float.Input("fps", default=30.0, min=0.01, max=1000.0, step=0.01, round=0.001, tooltip=tooltip)


def window_input() -> Any:
    return advanced(
        io.Int,
        "window",
        default=8,
        min=1,
        max=1024,
        tooltip="Frames decoded together. More is steadier and takes more memory.",
    )


def overlap_input() -> Any:
    return advanced(
        io.Int,
        "overlap",
        default=4,
        min=0,
        max=1023,
        tooltip="Frames shared by neighbouring windows, fewer than the window has.",
    )


def loop_input() -> Any:
    return advanced(
        io.Boolean,
        "loop",
        default=False,
        # Not in the contract, so that clients who know only that may leave it out.
        optional=True,
        tooltip="The last frame flows into the first, as ExVideo Long Sampler makes it with its own loop.",
    )


def centred_blend_input() -> Any:
    return advanced(
        io.Boolean,
        "centred_blend",
        default=False,
        # Not in the contract, so that clients who know only that may leave it out.
        optional=True,
        tooltip="The first and last frames of a window, which are off the most, count less than in the authors' blend: "
        "less error where windows meet.",
    )


def filename_input() -> Any:
    return io.String.Input(
        "filename_prefix",
        default="video/ExVideo",
        tooltip="Subfolder and beginning of the name in the output folder; a number is added. "
        "%date:yyyy-MM-dd%, %ExVideoSampler.seed% and the like are filled in.",
    )


def format_input() -> Any:
    return io.Combo.Input(
        "format",
        options=offered_formats(),
        default="mp4-h264",
        tooltip="Container and codec. MP4 with H.264 plays nearly everywhere; ProRes is for editing, GIF and WebP are "
        "for web pages, PNG is a folder of pictures.",
    )


def crf_input() -> Any:
    return io.Int.Input(
        "crf",
        default=19,
        min=0,
        max=51,
        tooltip="Quality: 17 to 23 looks good, higher is smaller and worse. 0 loses next to nothing, but few players "
        "can show it. GIF and PNG have only one quality.",
    )


def audio_input() -> Any:
    return io.Audio.Input("audio", optional=True, tooltip="Sound, cut to the length of the video.")


def host_model_inputs() -> list[Any]:
    """An input for the host's own frame interpolation models, on the hosts that have any."""
    socket = host.interpolation_socket()
    tooltip = "A frame interpolation model of ComfyUI's own, FILM or RIFE, to take the place of optical flow."
    return [io.Custom(socket).Input("model", optional=True, tooltip=tooltip)] if socket else []
