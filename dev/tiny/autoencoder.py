"""The tiny model's autoencoder, trained on scenes: an encoder of single frames, a decoder that looks along time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from dev.inside import core
from dev.tiny.optimizer import Optimizer
from dev.tiny.quick import half_precision
from dev.tiny.scenes import QUICK, render, scene

SIDE, BATCH, FRAMES = 64, 12, 4
"""Pixels of a side, frames of a step, frames of a clip once there are clips."""
STILL = 0.6
"""Share of the steps on single frames, of which each shows another scene."""
NOISE = 0.1
"""Added to latents of deviation 1 before they are decoded: a model's latents are never exact."""
SCALE = 0.18215
"""From the autoencoder's latents to deviation 1, as SVD's are."""

Report = Callable[[int, float], None]


def train_autoencoder(layout: Any, steps: int, learning_rate: float, report: Report) -> dict[str, torch.Tensor]:
    """Train, and return its tensors under SVD's names.

    Args:
        layout: widths, an `SVDLayout`.
        steps: of `BATCH` frames each.
        learning_rate: at most.
        report: told step and loss.
    """
    checkpoint, svd, tiny = core("host.checkpoint"), core("svd"), core("tiny")
    start = tiny.draw_checkpoint(layout, part=svd.VAE_PREFIX)
    network = checkpoint.autoencoder(layout)
    for kernel in (tensor for tensor in start.values() if tensor.ndim == 5):
        # Frames on their own at first, and nothing to be upset by when they get neighbours.
        kernel[:, :, ::2] = 0
    network.load_state_dict({key.removeprefix(svd.VAE_PREFIX): tensor for key, tensor in start.items()})
    attention = network.decoder.mid.attn_1
    # Several clips at a time: the host's decoder hands on how long one is, which this layer does not expect.
    attention.forward = lambda maps, timesteps: type(attention).forward(attention, maps)
    optimizer = Optimizer(network.parameters(), steps, learning_rate)
    for step in range(steps):
        frames = 1 if step < STILL * steps else FRAMES
        pixels = batch(step * BATCH, frames)
        with half_precision():
            latents = network.encoder(pixels).chunk(2, 1)[0].float()
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
            decoded = network.decoder(latents + NOISE * noise, timesteps=frames).float()
        # Latents grow against the noise, so they are held near deviation 1.
        spread = (latents.square().mean() - 1).clamp(min=0)
        loss = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + 0.01 * spread
        optimizer.step(loss)
        report(step, float(loss.detach()))
    return {svd.VAE_PREFIX + key: tensor for key, tensor in _scaled(network).items()}


def batch(first: int, frames: int) -> torch.Tensor:
    """Pixels in [−1, 1], [BATCH, 3, SIDE, SIDE], of clips out of scenes of their own, from `first` on."""
    parts = []
    for clip in range(first, first + BATCH // frames):
        begin = clip * 7919 % (128 - frames)
        parts.append(render(scene(clip, pace=QUICK), begin + frames, SIDE, first=begin))
    return torch.cat(parts).movedim(-1, 1) * 2 - 1


@torch.no_grad()
def _scaled(network: Any) -> dict[str, torch.Tensor]:
    """The trained tensors with latents on the scale of SVD's: `SCALE` times them has deviation 1."""
    pixels = torch.cat([batch(first, 1) for first in range(0, 20 * BATCH, BATCH)])
    deviation = float(network.encoder(pixels).chunk(2, 1)[0].std())
    factor = 1 / (SCALE * deviation)
    tensors = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}
    for name in ("weight", "bias"):
        # The first half are means; of the deviations nobody takes notice.
        tensors[f"encoder.conv_out.{name}"][:4] *= factor
        tensors[f"encoder.conv_out.{name}"][4:] = 0
    tensors["decoder.conv_in.weight"] /= factor
    return tensors
