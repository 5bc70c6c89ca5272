"""This process as a ComfyUI: for tests and benchmarks that look at tensors, without a server between."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dev.environment import HOST, ROOT
from exvideo_core import standalone

ALIAS = "exvideo_pack"
"""The pack's name among modules: a ComfyUI, too, loads it by its path, never by a name."""


def host_path() -> Path:
    """The ComfyUI to use: the one at COMFYUI_PATH, else the one that `make host` sets up."""
    return Path(os.environ.get("COMFYUI_PATH") or HOST)


def become_host(*arguments: str) -> ModuleType:
    """Make this process a ComfyUI started with these arguments, and load the pack into it; returns the pack."""
    if ALIAS in sys.modules:
        return sys.modules[ALIAS]
    standalone.become_host(arguments, host_path())
    spec = importlib.util.spec_from_file_location(ALIAS, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[ALIAS] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[ALIAS])
    return sys.modules[ALIAS]


def svd_model(checkpoint: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> Any:
    """ComfyUI's MODEL of SVD, of any width, on the checkpoint's very tensors: there is room for one set."""
    become_host()
    base, patcher = (importlib.import_module(f"comfy.{name}") for name in ("model_base", "model_patcher"))
    prefix = "model.diffusion_model."
    widths = importlib.import_module("comfy.model_detection").detect_unet_config(checkpoint, prefix)
    config = importlib.import_module("comfy.supported_models").SVD_img2vid(widths)
    config.unet_config["num_head_channels"] = min(64, widths["model_channels"])
    config.set_inference_dtype(dtype, None)
    with torch.device("meta"):
        model = config.get_model(checkpoint, prefix)
    unet = {key.removeprefix(prefix): tensor for key, tensor in checkpoint.items() if key.startswith(prefix)}
    model.diffusion_model.load_state_dict(unet, assign=True)
    with torch.device("cpu"):
        model.model_sampling = base.model_sampling(config, base.ModelType.V_PREDICTION_EDM)
    return patcher.ModelPatcher(model, device, device)
