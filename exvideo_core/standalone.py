"""A process that is no ComfyUI becomes one: for programs beside it, such as post-tuning from the command line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .types import ExVideoError


def become_host(arguments: Sequence[str] = ()) -> None:
    """Make ComfyUI's modules importable, as if it had been started with these arguments.

    It is the one at COMFYUI_PATH, else the one in whose custom_nodes folder this pack lies.

    Raises:
        ExVideoError: there is none.
    """
    tried = [os.environ.get("COMFYUI_PATH"), Path(__file__).resolve().parents[3]]
    found = [Path(path) for path in tried if path and Path(path, "comfy", "model_management.py").is_file()]
    if not found:
        raise ExVideoError(
            "No ComfyUI was found: put this pack into its custom_nodes folder, or set COMFYUI_PATH to ComfyUI's folder."
        )
    # First on the path, or `import nodes` would find our folder instead of the host's module.
    sys.path.insert(0, str(found[0].resolve()))
    argv, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = argv
