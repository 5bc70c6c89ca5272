"""A small model that makes pictures from words, in the form of Stable Diffusion 1.5 checkpoints, of random weights.

    python -m dev.painter CHECKPOINT

For the workflow that begins with words: the host's own loader takes it, which knows no other widths than these.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

from dev.inside import become_host, core

SEED = 0
CHANNELS, CONTEXT = 320, 768
"""Of the UNet, and of the text encoder's tokens: by these the host knows the model."""


def write_painter(path: Path) -> None:
    """Write the checkpoint, 0.3 GB in float16: a UNet of one level, CLIP's text encoder, a tiny autoencoder."""
    become_host("--cpu")
    unet, text, pixels = (
        importlib.import_module(name)
        for name in ("comfy.ldm.modules.diffusionmodules.openaimodel", "comfy.sd1_clip", "comfy.taesd.taesd")
    )
    parts = {
        "model.diffusion_model.": unet.UNetModel(
            image_size=32, in_channels=4, out_channels=4, model_channels=CHANNELS, num_res_blocks=[1],
            channel_mult=(1,), num_heads=8, use_spatial_transformer=True, transformer_depth=[1],
            transformer_depth_middle=1, transformer_depth_output=[1, 1], context_dim=CONTEXT,
        ),
        "cond_stage_model.": text.SD1ClipModel().clip_l,
        "first_stage_model.": pixels.TAESD(),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(SEED)
    tensors = {
        prefix + key: _drawn(key, tensor, generator).half()
        for prefix, part in parts.items()
        for key, tensor in part.state_dict().items()
    }
    core("files").save_tensors(path, tensors, {"title": "Random weights in the form of Stable Diffusion 1.5"})


def _drawn(key: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Weights under which activations stay of order 1."""
    if tensor.ndim < 2:
        # Of a normalisation, or a factor, 1; biases and shifts 0.
        return torch.full(tensor.shape, float(key.endswith(("weight", "scale"))))
    fan_in = 1 if "embedding" in key else tensor[0].numel()
    return torch.randn(tensor.shape, generator=generator) * fan_in**-0.5


if __name__ == "__main__":
    write_painter(Path(sys.argv[1]))
