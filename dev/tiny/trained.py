"""The tiny model as it was trained, put together from what is kept of each stage."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from dev.environment import ROOT
from exvideo_core.files import open_tensors, save_tensors, whole_or_nothing
from exvideo_core.tiny import CHECKPOINT, EXTENSION

KEPT = ROOT / "assets" / "tiny"
"""Where each stage's tensors go: they belong to the repository."""
STAGES = ("autoencoder", "encoder", "base")
"""What is kept of the checkpoint, a file each; the extension is a file of its own anyway."""


def write_trained_model(models: Path) -> None:
    """Write the trained checkpoint and its extension under a ComfyUI models folder."""
    checkpoint, extension = (models / name for name in (CHECKPOINT, EXTENSION))
    tensors: dict[str, torch.Tensor] = {}
    for stage in STAGES:
        with open_tensors(KEPT / f"{stage}.safetensors", "Restore it with git checkout.") as (file, shapes):
            tensors |= {key: file.get_tensor(key) for key in shapes}
    save_tensors(checkpoint, tensors, {"title": "ExVideo tiny model, trained on scenes"})
    extension.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(extension) as partial:
        shutil.copyfile(KEPT / "extension.safetensors", partial)
