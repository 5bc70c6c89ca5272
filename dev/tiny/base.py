"""The tiny model's base: SVD's UNet, trained from nothing on clips of 25 frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from dev.inside import core, svd_model
from dev.tiny.autoencoder import SCALE, Report
from dev.tiny.optimizer import Optimizer

FRAMES, CLIPS = 25, 6
"""Of a clip, as SVD-XT has them; of a step."""
APART = 8
"""Frames of a scene from one frame that a clip may begin with to the next."""
P_MEAN, P_STD = 1.0, 1.8
"""Of the logarithm of noise levels: a little higher and wider than SVD's 0.7 and 1.6 (Blattmann et al. 2023, appendix
D), since in these scenes nearly all is said by the picture."""
UNCONDITIONAL = 0.15
"""Share of clips without picture, so that there is something to guide away from."""
SLOW = 0.2
"""Share of clips of 15 frames a second instead of 30."""
_SILENT = ("out_layers.3.weight", "proj_out.weight", "to_out.0.weight", "ff.net.2.weight", "ff_in.net.2.weight")
"""The last weights of branches that are added to what they start from. At zero, training begins with a plain way
through, and ends where it would not get from random ones in the same time."""


class Seen(NamedTuple):
    """A scene as the base sees it.

    Attributes:
        latents: [T, 4, H/8, W/8], on the autoencoder's scale.
        tokens: of every frame that is a multiple of `APART`, [n, 1, D].
        motion_bucket_id: of the whole scene.
    """

    latents: torch.Tensor
    tokens: torch.Tensor
    motion_bucket_id: int


def train_base(
    start: dict[str, torch.Tensor],
    scenes: Sequence[Seen],
    steps: int,
    learning_rate: float,
    turn: int,
    report: Report,
) -> dict[str, torch.Tensor]:
    """Train, and return the running average of its tensors under SVD's names.

    Args:
        start: the UNet's tensors under SVD's names.
        scenes: what to learn.
        steps: of `CLIPS` clips each.
        learning_rate: at most.
        turn: number of the round; the first begins with silent branches, the others where the one before ended.
        report: told step and loss.
    """
    learning, svd = core("host.learning"), core("svd")
    begin = {k: torch.zeros_like(t) if turn == 0 and k.endswith(_SILENT) else t for k, t in start.items()}
    model = svd_model(begin, torch.device("cpu"), torch.float32).model
    parameters = {key: nn.Parameter(tensor.clone()) for key, tensor in model.diffusion_model.named_parameters()}
    average = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    optimizer = Optimizer(parameters.values(), steps, learning_rate)
    with learning.swapped(model.diffusion_model, parameters):
        denoise = learning.Denoiser(model, None, None)
        for step in range(steps):
            loss = _loss(denoise, scenes, turn * steps + step)
            optimizer.step(loss)
            keep = min(0.998, (1 + step) / (10 + step))
            values = [parameter.detach() for parameter in parameters.values()]
            torch._foreach_lerp_(list(average.values()), values, 1 - keep)
            report(step, float(loss.detach()))
    return {svd.UNET_PREFIX + key: tensor for key, tensor in average.items()}


def _loss(denoise: Any, scenes: Sequence[Seen], step: int) -> torch.Tensor:
    """Of SVD: the error of the denoised latents, weighted by (σ² + 1) / σ²."""
    chance = torch.Generator().manual_seed(step)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=chance))

    latents, pictures, tokens, ids = [], [], [], []
    shown, slow = (torch.rand(CLIPS, generator=chance).tolist() for _ in range(2))
    for clip in range(CLIPS):
        scene = scenes[below(len(scenes))]
        stride = 2 if slow[clip] < SLOW else 1
        begin = below((len(scene.latents) - stride * (FRAMES - 1) - 1) // APART + 1)
        frames = scene.latents[begin * APART :: stride][:FRAMES]
        sees = float(shown[clip] >= UNCONDITIONAL)
        latents.append(SCALE * frames)
        pictures.append(sees * frames[:1])
        tokens.append(sees * scene.tokens[begin, None])
        told = {"fps": 30 // stride, "motion_bucket_id": scene.motion_bucket_id, "augmentation_level": 0.0}
        ids.append(told)
    sigmas = (P_MEAN + P_STD * torch.randn(CLIPS, generator=chance)).exp()
    clean = torch.cat(latents)
    noise = torch.randn(clean.shape, generator=chance)
    each = sigmas.repeat_interleave(FRAMES)[:, None, None, None]
    denoised = denoise(clean + each * noise, sigmas, torch.cat(pictures), torch.cat(tokens), ids)
    return ((denoised - clean).square() * (each**2 + 1) / each**2).mean()
