"""What is done around the host's sampler, as in the reference: guidance per frame before, normalisation after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .types import ExVideoError

Guidance = Callable[[Mapping[str, Any]], torch.Tensor]


def latent_noise(latent: torch.Tensor, seed: int, numbers: Sequence[int] | None = None) -> torch.Tensor:
    """Standard normal noise of the latent's shape, the same numbers as ComfyUI's for this seed.

    Drawn from a generator of its own: the global random state is neither read nor changed.

    Args:
        latent: [T, 4, H/8, W/8].
        seed: of the generator.
        numbers: for frames taken out of a longer clip, which they were there: they get the noise they had there. A
            LATENT of ComfyUI says so by its `batch_index`.

    Raises:
        ExVideoError: there are not as many numbers as frames.
    """
    generator = torch.Generator().manual_seed(seed)
    if numbers is None:
        return torch.randn(latent.shape, generator=generator, dtype=torch.float32)
    if len(numbers) != len(latent):
        raise ExVideoError(
            f"The latents are {len(latent)} frames, and their batch_index has {len(numbers)} numbers: take the frames "
            "anew out of the clip, by Latent From Batch."
        )
    frames = [torch.randn(latent.shape[1:], generator=generator, dtype=torch.float32) for _ in range(max(numbers) + 1)]
    return torch.stack([frames[number] for number in numbers])


def linear_guidance(min_cfg: float, max_cfg: float, first: int = 0, total: int | None = None) -> Guidance:
    """Classifier-free guidance that grows linearly from the first frame to the last, as SVD was built for.

    Args:
        min_cfg, max_cfg: at the clip's first and last frame.
        first: number of the first frame that is guided, where it is a part of a longer clip.
        total: frames of that clip; as many as are guided by default.

    Returns:
        A function of ComfyUI's guidance arguments: `cond` and `uncond`, [T, 4, H/8, W/8] each, to the guided one.
    """

    def guide(args: Mapping[str, Any]) -> torch.Tensor:
        cond, uncond = args["cond"], args["uncond"]
        frames = len(cond)
        scale = torch.linspace(min_cfg, max_cfg, total or frames)[first : first + frames].to(cond).view(-1, 1, 1, 1)
        return uncond + scale * (cond - uncond)

    return guide


def post_process(latents: torch.Tensor, normalize: bool = True, contrast: float = 1.0) -> torch.Tensor:
    """Give every frame the mean and deviation of the whole clip, against drift of brightness; then scale.

    Args:
        latents: [T, 4, H/8, W/8].
        normalize: whether to match the frames' statistics.
        contrast: factor on all latents; the authors use 1.2.

    Returns:
        [T, 4, H/8, W/8]. A frame without any variation stays as it is, instead of turning into NaN.
    """
    if normalize:
        std, mean = torch.std_mean(latents, dim=(1, 2, 3), keepdim=True)
        clip_std, clip_mean = torch.std_mean(latents)
        flat = std == 0
        matched = (latents - mean) / std.masked_fill(flat, 1.0) * clip_std + clip_mean
        latents = torch.where(flat, latents, matched)
    return latents * contrast
