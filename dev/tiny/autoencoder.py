"""The tiny model's autoencoder, trained on scenes: an encoder of single frames, a decoder that looks along time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dev.inside import ALIAS, become_host
from dev.tiny.scenes import render, scene

SIDE, FRAMES, CLIPS = 64, 8, 2
"""Pixels of a side, frames of a clip, clips of a step."""
NOISE = 0.1
"""Added to latents of deviation 1 before they are decoded: a model's latents are never exact."""
SCALE = 0.18215
"""From the autoencoder's latents to deviation 1, as SVD's are."""

Report = Callable[[int, float], None]


def train_autoencoder(layout: Any, steps: int, learning_rate: float, report: Report) -> dict[str, torch.Tensor]:
    """Train, and return its tensors under SVD's names.

    Args:
        layout: widths, an `SVDLayout`.
        steps: of `CLIPS` clips each.
        learning_rate: at first; it falls to zero like a cosine.
        report: told step and loss.
    """
    become_host("--cpu")
    checkpoint, svd, tiny = (
        importlib.import_module(f"{ALIAS}.exvideo_core.{n}") for n in ("host.checkpoint", "svd", "tiny")
    )
    start = tiny.draw_checkpoint(layout, part=svd.VAE_PREFIX)
    network = checkpoint.autoencoder(layout)
    network.load_state_dict({key.removeprefix(svd.VAE_PREFIX): tensor for key, tensor in start.items()})
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, pixels in zip(range(steps), clips(FRAMES, CLIPS, SIDE), strict=False):
        latents = network.encoder(pixels).chunk(2, 1)[0]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
        decoded = torch.cat([network.decoder(part) for part in (latents + NOISE * noise).split(FRAMES)])
        # Latents grow against the noise, so they are held near deviation 1.
        spread = (latents.square().mean() - 1).clamp(min=0)
        loss = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + 0.01 * spread
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step, float(loss.detach()))
    return {svd.VAE_PREFIX + key: tensor for key, tensor in _scaled(network).items()}


def clips(frames: int, count: int, side: int) -> Iterator[torch.Tensor]:
    """Endless pixels in [−1, 1], [count · frames, 3, side, side], each clip out of a scene of its own."""
    for number in range(10**9):
        parts = []
        for clip in range(number * count, (number + 1) * count):
            begin = clip * 7919 % (128 - frames)
            parts.append(render(scene(clip), begin + frames, side, first=begin))
        yield torch.cat(parts).movedim(-1, 1) * 2 - 1


@torch.no_grad()
def _scaled(network: Any) -> dict[str, torch.Tensor]:
    """The trained tensors with latents on the scale of SVD's: `SCALE` times them has deviation 1."""
    pixels = next(clips(4, 64, SIDE))
    deviation = float(network.encoder(pixels).chunk(2, 1)[0].std())
    factor = 1 / (SCALE * deviation)
    tensors = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}
    for name in ("weight", "bias"):
        # The first half are means; of the deviations nobody takes notice.
        tensors[f"encoder.conv_out.{name}"][:4] *= factor
        tensors[f"encoder.conv_out.{name}"][4:] = 0
    tensors["decoder.conv_in.weight"] /= factor
    return tensors
