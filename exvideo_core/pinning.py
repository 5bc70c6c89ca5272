"""Frames that are known before a clip is sampled: pinned by the mask of a LATENT, and their neighbours led to them.

The reference pins frames and leaves it at that. The model hardly heeds them: it takes a pinned frame for something a
little different, and lets the others go on from that, so that the video jumps where they meet. So here the frames next
to a pinned one are mended at every step of sampling by as much as the model is mistaken in the pinned one, and, where
several frames are pinned, by as much as it moves on from the last of them in another way than before and after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .plan import Draw, draws
from .types import ExVideoError

FADE = "pin_fade"
"""In a LATENT beside its `noise_mask`: how many frames next to a pinned one are drawn to it. Without it none are."""
CHAIN_FADE = 16
"""Where segments of a chain meet, whose pinned frames the model itself has made."""
ENDS_FADE = 48
"""Before a last frame, which is farther from where the model would end."""


def pinned_latent(samples: torch.Tensor, pinned: Sequence[int], fade: int) -> dict[str, Any]:
    """A LATENT some of whose frames are pinned as they are.

    Args:
        samples: [T, 4, H/8, W/8].
        pinned: numbers of those frames, 0 … T − 1.
        fade: see `FADE`.
    """
    if not pinned:
        return {"samples": samples}
    mask = torch.ones(len(samples), 1, *samples.shape[2:])
    mask[list(pinned)] = 0
    return {"samples": samples, "noise_mask": mask, FADE: fade}


def pinned_frames(latent: Mapping[str, Any]) -> list[int]:
    """Numbers of the frames that a LATENT's mask pins all over; none where it has no mask of a frame each."""
    mask = latent.get("noise_mask")
    if mask is None:
        return []
    kept = mask.reshape(-1, mask.shape[-2] * mask.shape[-1]).amax(1) == 0
    return kept.nonzero().flatten().tolist() if len(kept) == len(latent["samples"]) else []


def with_ends(start: torch.Tensor, ends: torch.Tensor, fade: int) -> dict[str, Any]:
    """A LATENT whose first and last frame are pinned.

    Args:
        start: what the frames between are sampled from, [T, 4, H/8, W/8].
        ends: [2, 4, H/8, W/8].
        fade: see `FADE`.

    Raises:
        ExVideoError: no frame is left between them.
    """
    if len(start) < 3:
        raise ExVideoError(
            f"From a first picture to a last one a video needs at least 3 frames, got num_frames = {len(start)}: "
            "raise it, or disconnect last_image."
        )
    samples = torch.cat([ends[:1].to(start), start[1:-1], ends[1:].to(start)])
    return pinned_latent(samples, (0, len(samples) - 1), fade)


def before_contrast(latent: Mapping[str, Any], contrast: float) -> Mapping[str, Any]:
    """A LATENT whose pinned frames, where others are led to them, a later factor on all frames brings back as they are.

    Args:
        contrast: that factor, see `sampling.post_process`.
    """
    if not latent.get(FADE) or not contrast:
        return latent
    pinned = pinned_frames(latent)
    samples = latent["samples"].clone()
    samples[pinned] /= contrast
    return {**latent, "samples": samples}


def draw_to_pinned(denoised: torch.Tensor, known: torch.Tensor, pinned: Sequence[int], fade: int) -> torch.Tensor:
    """Lead the frames next to pinned ones to them, by what a step of sampling takes the clip for. (Ours.)

    By as much as the model is mistaken in a pinned frame, which is known, its neighbours are mended, each less than the
    one before it, by the squared cosine of `plan.draws`; what the model lets move from one frame to the next stays.
    Only the step away from several pinned frames becomes the mean of the steps before and after it, for the model often
    makes it a larger one, which would be seen.

    Args:
        denoised: what the model takes the clip for at this noise level, [T, 4, H/8, W/8].
        known: the clip on the same scale and of the same shape; only its pinned frames are looked at.
        pinned: their numbers.
        fade: how many frames on either side are drawn to each, ≥ 0.

    Returns:
        [T, 4, H/8, W/8]; the pinned frames as they came.
    """
    mended = denoised.clone()
    for draw in draws(len(denoised), pinned, fade):
        weights = denoised.new_tensor(draw.weights).view(-1, 1, 1, 1)
        mistake = known[draw.pin].to(denoised) - denoised[draw.pin]
        mended[list(draw.frames)] += weights * (mistake - _jump(denoised, pinned, draw))
    return mended


def _jump(denoised: torch.Tensor, pinned: Sequence[int], draw: Draw) -> torch.Tensor | float:
    """How far the step away from a pinned frame is from the mean of those before and after it, [4, H/8, W/8]."""
    away = draw.frames.step
    last, before, near, far = (draw.pin + steps * away for steps in (0, -1, 1, 2))
    if before not in pinned or not 0 <= far < len(denoised):
        return 0.0
    step = denoised[near] - denoised[last]
    return step - (denoised[last] - denoised[before] + denoised[far] - denoised[near]) / 2
