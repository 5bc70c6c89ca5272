"""What the doctor asks ComfyUI."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.supported_models
import folder_paths
import torch
from comfy.cli_args import args as host_arguments
from comfyui_version import __version__ as host_version

from ..doctor.checks import check_flow, check_formats, check_memory, check_models, extended_parameters
from ..doctor.findings import Finding, guarded
from ..svd import UNetLayout
from ..types import ExVideoError, LatentShape
from .files import ENDINGS, MODEL_FOLDER, model_names, model_path
from .memory import Memory


def diagnose() -> list[Finding]:
    """All that the doctor looks at but the packages, in a running ComfyUI or in a process that became one."""
    return [
        *guarded("ComfyUI", _check_host),
        *guarded("The models", _check_models),
        *guarded("ffmpeg", check_formats),
        *guarded("Memory", _check_memory),
        *guarded("Optical flow", check_flow),
    ]


def add_folders_as_at_start() -> None:
    """Add the folders of extra_model_paths.yaml and of the command line, as ComfyUI's own start does."""
    load = importlib.import_module("utils.extra_config").load_extra_path_config
    beside = Path(folder_paths.__file__).with_name("extra_model_paths.yaml")
    for path in (*([beside] if beside.is_file() else []), *chain(*(host_arguments.extra_model_paths_config or []))):
        load(str(path))
    if host_arguments.output_directory:
        folder_paths.set_output_directory(str(Path(host_arguments.output_directory).absolute()))
    folder_paths.add_model_folder_path("checkpoints", str(Path(folder_paths.get_output_directory(), "checkpoints")))


def _check_host() -> Iterator[Finding]:
    # An older one than we support would not have come here.
    yield Finding(f"ComfyUI {host_version}, which is new enough")
    device = comfy.model_management.get_torch_device()
    on = f"torch {torch.__version__} works on {comfy.model_management.get_torch_device_name(device)}"
    if comfy.model_management.is_device_cpu(device):
        fix = "If this machine has a GPU, install a torch that is built for it, and start ComfyUI without --cpu."
        yield Finding(on, "warn", fix)
    else:
        yield Finding(on)
    attention = comfy.ldm.modules.attention.optimized_attention.__name__
    yield Finding(f"ComfyUI's attention is {attention.removeprefix('attention_')}")


def _check_models() -> Iterator[Finding]:
    for kind, folder in (("SVD checkpoints", "checkpoints"), ("ExVideo extensions", MODEL_FOLDER)):
        first, *others = folder_paths.get_folder_paths(folder)
        yield Finding(f"{kind} belong in {first}" + (f"; also read: {', '.join(others)}" if others else ""))
    files: dict[str, dict[str, Path]] = {"checkpoints": {}, MODEL_FOLDER: {}}
    for folder, found in files.items():
        for name in model_names(folder):
            if not name.lower().endswith(ENDINGS):
                continue
            try:
                found[name] = model_path(folder, name)
            except ExVideoError:  # the rest can be looked at
                what = f"{name} is listed in {folder}, but cannot be opened: most likely it is a link to nowhere"
                yield Finding(what, "warn", "Remove it, or put back what it leads to.")
    yield from check_models(*files.values())


def _check_memory() -> Iterator[Finding]:
    management = comfy.model_management
    device, supported = management.get_torch_device(), comfy.supported_models.SVD_img2vid.supported_inference_dtypes
    parameters = extended_parameters()
    dtype = management.unet_dtype(model_params=parameters, supported_dtypes=supported, weight_dtype=torch.float16)
    cast = management.unet_manual_cast(dtype, device, supported) or dtype
    # What models take now is free as soon as others are needed.
    loaded = [entry for entry in management.current_loaded_models if entry.model is not None and entry.device == device]
    free = int(management.get_free_memory(device)) + sum(entry.model_loaded_memory() for entry in loaded)
    free = max(free - parameters * dtype.itemsize, 0)

    def needed(setting: str, clip: LatentShape) -> int:
        return Memory(setting, UNetLayout().channels).plan(clip, cast.itemsize, device, free).needed

    yield from check_memory(management.get_torch_device_name(device), free, needed)
