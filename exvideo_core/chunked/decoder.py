"""SVD's temporal decoder, from latents to pixels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .res_block import spatial_res_block, temporal_res_block
from .work import Source, Upsampled, Work

# Working memory in maps of a layer's own width. Generous: a test counts that windows stay within.
_ATTENTION_MAPS, _LAST_MAPS = 8, 4


def decode(work: Work, decoder: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode frames that are seen together.

    Args:
        decoder: the host's `VideoDecoder`, whose temporal layers are ResNet blocks and the last convolution.
        latents: [T, 4, h, w].

    Returns:
        [T, 3, 8 h, 8 w].
    """
    # Each layer takes its input out of the list and puts its output in, so that nothing else holds a map.
    maps: list[Source] = [decoder.conv_in(latents)]
    _res_block(work, decoder.mid.block_1, maps, latents)
    for some in work.over(len(latents), _ATTENTION_MAPS, maps[0][:1]):
        maps[0][some].copy_(decoder.mid.attn_1(maps[0][some]))
    _res_block(work, decoder.mid.block_2, maps, latents)
    for level in reversed(decoder.up):
        for block in level.block:
            _res_block(work, block, maps, latents)
        if hasattr(level, "upsample"):
            frames, channels, height, width = maps[0].shape
            maps = [Upsampled(level.upsample, maps[0][:], torch.Size((frames, channels, 2 * height, 2 * width)))]

    x, last = maps[0], decoder.conv_out
    pixels = latents.new_empty(len(latents), last.out_channels, *x.shape[2:])
    for some in work.over(len(latents), _LAST_MAPS, x[:1]):
        pixels[some] = last(F.silu(decoder.norm_out(x[some]), inplace=True), skip_video=True)
    mixed: torch.Tensor = last.time_mix_conv(pixels.transpose(0, 1)[None])
    return mixed[0].transpose(0, 1)


def _res_block(work: Work, block: Any, maps: list[Source], like: torch.Tensor) -> None:
    """The autoencoder's ResNet block, from what is in `maps` to what is in it after."""
    with work.at_hand(like, *(part for name, part in block.named_children() if name != "time_stack")):
        out = spatial_res_block(work, maps, like, block.out_channels, lambda x, _some: block(x, None, skip_video=True))
    temporal_res_block(work, block.time_stack, out, None, block.get_alpha(bs=1).flatten())
    maps.append(out)
