"""SVD's temporal decoder on the host's autoencoder, within the memory that there is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.temporal_ae import VideoDecoder

from ..budget import BUDGETS, CPU_BUDGET, Decoding, plan_decoding, smaller_decoding
from ..chunked import by_convolutions, decode
from ..decode import Decoder, decode_tiles
from ..plan import loop_window
from ..types import LATENT_CHANNELS, ExVideoError
from .memory import free_memory, ran_out_of_memory, work
from .telling import warn


def frame_decoder(
    vae: Any, latents: torch.Tensor, window: int, loop: bool = False, most: int = BUDGETS["auto"][1]
) -> Decoder:
    """A decoder of windows of this clip: latents [n, 4, h, w] → unclipped frames [n, H, W, 3] of the VAE's scale.

    SVD's own decoder works in chunks, of at most so many bytes, with the same result; any other as the host has it.

    Raises:
        ExVideoError: the autoencoder is of latents of another kind.
    """
    channels, dimensions = vae.latent_channels, vae.latent_dim
    if (channels, dimensions) != (LATENT_CHANNELS, 2):
        raise ExVideoError(
            f"SVD's autoencoder takes latents of {LATENT_CHANNELS} channels and 2 dimensions, but the connected VAE "
            f"takes {channels} and {dimensions}: connect the VAE of the SVD checkpoint."
        )
    frames = loop_window(len(latents), window) if loop else min(window, len(latents))
    decoder = getattr(vae.first_stage_model, "decoder", None)
    if not isinstance(decoder, VideoDecoder) or decoder.time_mode != "conv-only":
        one_frame = vae.memory_used_decode((1, *latents.shape[1:]), vae.vae_dtype)
        return _of_vae(vae, one_frame * frames, vae.first_stage_model.decode)

    def plan(free: float) -> Decoding:
        height, width = latents.shape[2:]
        one_cell = decoder.conv_out.in_channels * vae.spacial_compression_decode() ** 2 * vae.vae_dtype.itemsize
        on_cpu = comfy.model_management.is_device_cpu(vae.device)
        return plan_decoding(frames, height, width, one_cell, int(free), min(most, CPU_BUDGET) if on_cpu else most)

    weights = vae.patcher.model_size()
    needed = plan(comfy.model_management.get_total_memory(vae.device) - weights).needed
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed)
    return _InChunks(vae, decoder, plan(free_memory(vae.patcher, vae.device)))


class _InChunks:
    """A decoder of windows that takes smaller chunks, and in the end tiles, when memory runs out."""

    def __init__(self, vae: Any, decoder: Any, plan: Decoding):
        self._plan = plan
        self._window = _of_vae(vae, plan.needed, lambda latents: decode(work(self._plan.budget), decoder, latents))
        self._say_tiles()

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        while True:
            try:
                return decode_tiles(latents, self._window, self._plan.rows, self._plan.columns)
            except Exception as error:
                before, smaller = self._plan, smaller_decoding(self._plan)
                if smaller == before or not ran_out_of_memory(error):
                    raise
            self._plan = smaller
            comfy.model_management.soft_empty_cache()
            warn("ExVideo Decode ran out of memory and goes on in smaller chunks.")
            if self._plan[1:] != before[1:]:
                self._say_tiles()

    def _say_tiles(self) -> None:
        tiles = len(self._plan.rows) * len(self._plan.columns)
        if tiles > 1:
            warn(
                f"ExVideo Decode: memory is too short to decode whole frames, so they are decoded in {tiles} blended "
                "tiles, which may differ a little in colour. A smaller window takes less memory."
            )


def _of_vae(vae: Any, needed: float, run: Callable[[torch.Tensor], torch.Tensor]) -> Decoder:
    # Newer hosts can have an autoencoder on another GPU than the one in use.
    on_device = getattr(comfy.model_management, "cuda_device_context", nullcontext)

    def decode_window(latents: torch.Tensor) -> torch.Tensor:
        # Each time: what runs between windows, such as a model that interpolates, may have taken its place.
        comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed)
        latents = latents.to(vae.device, vae.vae_dtype)
        with on_device(vae.device), by_convolutions(latents):
            frames = run(latents)
        return frames.to(vae.output_device).movedim(1, -1)

    return decode_window
