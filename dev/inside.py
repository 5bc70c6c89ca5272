"""This process as a ComfyUI: for tests and benchmarks that look at tensors, without a server between."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
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


def core(name: str) -> Any:
    """A module of the pack's core as this ComfyUI has it; another import would be another module."""
    become_host()
    return importlib.import_module(f"{ALIAS}.exvideo_core.{name}")


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


def pack_nodes() -> dict[str, Any]:
    """The pack's nodes by id, as the host gets them."""
    entry = asyncio.run(become_host().comfy_entrypoint())
    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(entry.get_node_list())}


def node_runner() -> Callable[..., tuple[Any, ...]]:
    """A function that runs one of the pack's nodes as the host would: by id, with its defaults where nothing is given.

    For savers, the graph is empty.
    """
    nodes, latest = pack_nodes(), importlib.import_module("comfy_api.latest")

    def run(node_id: str, **inputs: Any) -> tuple[Any, ...]:
        node = nodes[node_id]
        node.hidden = latest.io.HiddenHolder.from_dict(None)
        defaults = {i.id: i.default for i in node.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
        return tuple(node.execute(**{**defaults, **inputs}).args)

    return run
