"""A process that is no ComfyUI becomes one: for programs beside it, such as post-tuning from the command line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .types import ExVideoError
from .versions import require_version


def start_host(arguments: Sequence[str] = ()) -> None:
    """Become ComfyUI as `become_host` does, and let it find its device.

    Raises:
        ExVideoError: there is none, one that is too old, or one that does not start here.
    """
    become_host(arguments)
    try:
        importlib.import_module(".host", __package__)
    except Exception as error:  # what ComfyUI itself raises where it cannot start
        raise ExVideoError(
            f"ComfyUI does not start here: {error}. Mend what it says, such as the driver of the GPU, or hand on what "
            "ComfyUI is started with: -- --cpu, say."
        ) from error


def become_host(arguments: Sequence[str] = (), path: Path | None = None) -> None:
    """Make ComfyUI's modules importable, as if it had been started with these arguments.

    Args:
        arguments: ComfyUI's own, such as --cpu.
        path: of its folder; else COMFYUI_PATH names it, or this pack lies in its custom_nodes folder.

    Raises:
        ExVideoError: there is none, or one that is too old.
    """
    tried = [path] if path else [os.environ.get("COMFYUI_PATH"), Path(__file__).resolve().parents[3]]
    found = [Path(folder) for folder in tried if folder and Path(folder, "comfy", "model_management.py").is_file()]
    if not found:
        raise ExVideoError(
            "No ComfyUI was found: put this pack into its custom_nodes folder, or set COMFYUI_PATH to ComfyUI's folder."
        )
    # First on the path, or `import nodes` would find our folder instead of the host's module.
    sys.path.insert(0, str(found[0].resolve()))
    argv, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        require_version(importlib.import_module("comfyui_version").__version__)
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = argv
