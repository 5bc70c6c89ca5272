"""A tiny model of SVD's topology with an extension, so that every workflow runs anywhere, within minutes, offline.

    python -m exvideo_core.tiny --models ComfyUI/models

writes two files in the layouts of SVD and of the ExVideo release. Their weights are drawn from a seed: the
videos they make show that the way works, not what ExVideo can do.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from .extension import TABLE, Extension, new_extension
from .files import save_tensors
from .svd import UNET_PREFIX, CLIPLayout, SVDLayout, UNetLayout, VAELayout

CHECKPOINT = "checkpoints/exvideo_tiny_svd.safetensors"
EXTENSION = "exvideo/exvideo_tiny_128f.safetensors"
NUM_FRAMES = 128

LAYOUT = SVDLayout(
    # 32 channels is as narrow as SVD's 32 normalisation groups allow.
    unet=UNetLayout(channels=32, context=64),
    vae=VAELayout(channels=32, multipliers=(1, 1, 2, 2)),
    clip=CLIPLayout(width=80, layers=2, hidden=160, projection=64),
)

log = logging.getLogger(__name__)


def draw_checkpoint(
    layout: SVDLayout, seed: int = 0, part: str | tuple[str, ...] = "", device: str | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """Random weights of a layout, float32, scaled so that activations stay of order 1.

    Args:
        layout: names and shapes.
        seed: of the weights.
        part: only tensors whose names begin so.
        device: where they are drawn; each kind of device draws others.
    """
    generator = torch.Generator(device).manual_seed(seed)
    return {key: _draw(key, shape, generator) for key, shape in layout.tensors().items() if key.startswith(part)}


def draw_extension(checkpoint: Mapping[str, torch.Tensor], num_frames: int, seed: int = 1) -> Extension:
    """An extension of a base that differs from it in every tensor, as one does after training, but not by much."""
    device = next(iter(checkpoint.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    new = new_extension(lambda key: checkpoint[UNET_PREFIX + key], num_frames)

    def moved(key: str, tensor: torch.Tensor) -> torch.Tensor:
        fan_in = 1 if key.endswith(TABLE) else tensor[0].numel()
        noise = torch.randn(tensor.shape, generator=generator, device=device)
        return tensor.to(device) + 0.1 * fan_in**-0.5 * noise

    return Extension({key: moved(key, tensor) for key, tensor in new.tensors.items()}, num_frames)


def write_tiny_model(models: Path) -> None:
    """Write the tiny checkpoint and its extension under a ComfyUI models folder, where they are not there yet."""
    if all((models / name).exists() for name in (CHECKPOINT, EXTENSION)):
        return
    checkpoint = draw_checkpoint(LAYOUT)
    files = {CHECKPOINT: checkpoint, EXTENSION: draw_extension(checkpoint, NUM_FRAMES).tensors}
    for name, tensors in files.items():
        path = models / name
        if path.exists():
            continue
        half = {key: tensor.half() for key, tensor in tensors.items()}
        save_tensors(path, half, {"title": "ExVideo tiny model, random weights"})
        log.info("wrote %s", path)


def _draw(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    name = key.rpartition(".")[2]
    if name == "mix_factor" or name.endswith("bias"):
        return torch.zeros(shape, device=generator.device)
    if name == "weight" and len(shape) == 1:  # of a normalisation
        return torch.ones(shape, device=generator.device)
    # OpenCLIP keeps its projection as inputs × outputs; everything else has its outputs first.
    fan_in = shape[0] if name == "proj" else math.prod(shape[1:])
    return torch.randn(shape, generator=generator, device=generator.device) * fan_in**-0.5


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tiny model into a ComfyUI models folder.")
    parser.add_argument("--models", type=Path, required=True, help="the models folder, such as ComfyUI/models")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_tiny_model(parser.parse_args().models)


if __name__ == "__main__":
    main()
