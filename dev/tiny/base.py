"""The tiny model's base: SVD's UNet, trained from nothing on clips of 25 frames."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dev.inside import ALIAS, become_host, svd_model
from dev.tiny.autoencoder import SCALE, Report

FRAMES, CLIPS = 25, 4
"""Of a clip, as SVD-XT has them; of a step."""
P_MEAN, P_STD = 0.7, 1.6
"""Of the logarithm of noise levels in SVD's training (Blattmann et al. 2023, appendix D)."""
UNCONDITIONAL = 0.15
"""Share of clips without picture, so that there is something to guide away from."""


def train_base(
    start: dict[str, torch.Tensor], clips: Sequence[Any], steps: int, learning_rate: float, report: Report
) -> dict[str, torch.Tensor]:
    """Train, and return the running average of its tensors under SVD's names.

    Args:
        start: the UNet's tensors under SVD's names.
        clips: what to learn, as `post_tuning.cache.Clip`, at least `FRAMES` frames each.
        steps: of `CLIPS` clips each.
        learning_rate: at first; it falls to zero like a cosine.
        report: told step and loss.
    """
    become_host("--cpu")
    learning, svd = (importlib.import_module(f"{ALIAS}.exvideo_core.{name}") for name in ("host.learning", "svd"))
    model = svd_model(start, torch.device("cpu"), torch.float32).model
    parameters = {key: nn.Parameter(tensor.clone()) for key, tensor in model.diffusion_model.named_parameters()}
    average = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with learning.swapped(model.diffusion_model, parameters):
        denoise = learning.Denoiser(model, None, None)
        for step in range(steps):
            loss = _loss(denoise, clips, step)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            schedule.step()
            keep = min(0.999, (1 + step) / (10 + step))
            values = [parameter.detach() for parameter in parameters.values()]
            torch._foreach_lerp_(list(average.values()), values, 1 - keep)
            report(step, float(loss.detach()))
    return {svd.UNET_PREFIX + key: tensor for key, tensor in average.items()}


def _loss(denoise: Any, clips: Sequence[Any], step: int) -> torch.Tensor:
    """Of SVD: the error of the denoised latents, weighted by (σ² + 1) / σ²."""
    chance = torch.Generator().manual_seed(step)
    chosen = [clips[int(torch.randint(len(clips), (), generator=chance))] for _ in range(CLIPS)]
    sigmas = (P_MEAN + P_STD * torch.randn(CLIPS, generator=chance)).exp()
    shown = (torch.rand(CLIPS, generator=chance) >= UNCONDITIONAL).float()
    latents = SCALE * torch.cat([clip.latents[:FRAMES] for clip in chosen])
    noise = torch.randn(latents.shape, generator=chance)
    each = sigmas.repeat_interleave(FRAMES)[:, None, None, None]
    pictures = torch.cat([sees * clip.latents[:1] for clip, sees in zip(chosen, shown, strict=True)])
    tokens = torch.cat([sees * clip.token for clip, sees in zip(chosen, shown, strict=True)])
    ids = [{"fps": 30, "motion_bucket_id": clip.motion_bucket_id, "augmentation_level": 0.0} for clip in chosen]
    denoised = denoise(latents + each * noise, sigmas, pictures, tokens, ids)
    return ((denoised - latents).square() * (each**2 + 1) / each**2).mean()
