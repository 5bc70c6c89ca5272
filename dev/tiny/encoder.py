"""The tiny model's image encoder, trained to tell from a picture of a scene what is to be seen in it."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dev.inside import core
from dev.tiny.autoencoder import SIDE, Report
from dev.tiny.optimizer import Optimizer
from dev.tiny.scenes import KINDS, QUICK, Scene, render, scene
from exvideo_core.svd import HOST_NAMES

BATCH = 32


def train_encoder(layout: Any, steps: int, learning_rate: float, report: Report) -> dict[str, torch.Tensor]:
    """Train, and return its tensors under SVD's names.

    Args:
        layout: widths, an `SVDLayout`.
        steps: of `BATCH` pictures each.
        learning_rate: at most.
        report: told step and loss.
    """
    checkpoint, conditioning, svd, tiny = core("host.checkpoint"), core("conditioning"), core("svd"), core("tiny")
    clip_vision = checkpoint.narrow_clip_vision(tiny.draw_checkpoint(layout, part=svd.CLIP_PREFIX), layout)
    network = clip_vision.model.float().requires_grad_(True)
    for layer in network.modules():
        if isinstance(layer, nn.LayerNorm):
            # The host adds to what goes into its norms in place, and their gradient needs it as it was.
            layer.register_forward_pre_hook(lambda _layer, inputs: (inputs[0].clone(), *inputs[1:]))
    head = nn.Linear(layout.clip.projection, len(_facts(scene(0))))
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = Optimizer(parameters, steps, learning_rate)
    for step in range(steps):
        scenes = [scene(number, pace=QUICK) for number in range(step * BATCH, (step + 1) * BATCH)]
        pixels = torch.cat(
            [
                conditioning.clip_pixels(
                    render(what, 1, SIDE), clip_vision.image_size, clip_vision.image_mean, clip_vision.image_std
                )
                for what in scenes
            ]
        )
        token = network(pixel_values=pixels, intermediate_output=-2)[2]
        loss = F.mse_loss(head(token), torch.tensor([_facts(what) for what in scenes]))
        # A token of deviation 1 is what the UNet expects.
        loss = loss + 0.01 * (token.square().mean() - 1).square()
        optimizer.step(loss)
        report(step, float(loss.detach()))
    tensors = _under_openclip_names({key: tensor.detach().clone() for key, tensor in network.state_dict().items()})
    return {svd.CLIP_PREFIX + key: tensor for key, tensor in tensors.items()}


def _facts(what: Scene) -> list[float]:
    """What can be seen, in numbers around 0."""
    kind = [float(what.kind == name) for name in KINDS]
    place = [4 * (along - 0.5) for along in what.place]
    front = [math.cos(what.heading), math.sin(what.heading)]
    colours = [2 * value - 1 for colour in (what.colour, what.sky, what.ground) for value in colour]
    return [*kind, *place, *front, 25 * (what.radius - 0.15), *colours]


def _under_openclip_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, tensor in tensors.items():
        name = key
        for theirs, ours in HOST_NAMES.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    renamed["proj"] = renamed.pop("visual_projection.weight").T.contiguous()
    for key in [key for key in renamed if ".self_attn.q_proj." in key]:
        parts = [renamed.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        renamed[re.sub(r"self_attn\.q_proj\.(\w+)", r"attn.in_proj_\1", key)] = torch.cat(parts)
    return renamed
