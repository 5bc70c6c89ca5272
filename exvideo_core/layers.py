"""The extended temporal layer (ExVideo, section 3.2): what a layer of SVD does once a clip may be long.

Two things are new against SVD: a trained table of positions instead of a sinusoid, and a 3-D convolution
before temporal attention. The rest of the layer, spatial part included, is the host's own modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from .extension import LAYERS, PositionWeights
from .types import ExVideoError

FRAME_NUMBERS = "exvideo_frame_numbers"
"""In the host's `transformer_options`: which row of the position table each frame takes, where not 0 … T − 1."""


def pad_mirrored(x: torch.Tensor) -> torch.Tensor:
    """Add one cell around the last three axes of [B, C, T, H, W], mirrored at the edge cell.

    An axis of a single cell has nothing to mirror, so that cell is repeated instead.
    """
    lengths = x.shape[-3:]
    x = x.expand(-1, -1, *(3 if n == 1 else n for n in lengths))
    margins = [0 if n == 1 else 1 for n in reversed(lengths) for _side in range(2)]
    return F.pad(x, margins, mode="reflect") if any(margins) else x


class PositionLayer(nn.Module):
    """The new part of one extended layer: the position table and the 3-D convolution.

    Args:
        weights: table [F, C], kernel [C, C, 3, 3, 3] and bias [C]; shared, not copied.
        ops: where `Embedding` and `Conv3d` come from: `torch.nn`, or the host's casting equivalents.
    """

    def __init__(self, weights: PositionWeights, ops: Any = nn):
        super().__init__()
        num_frames, channels = weights.table.shape
        # Built without storage: the weights given are the storage.
        self.table = ops.Embedding(num_frames, channels, device="meta", dtype=weights.table.dtype)
        self.conv = ops.Conv3d(channels, channels, 3, device="meta", dtype=weights.kernel.dtype)
        self.table.weight = nn.Parameter(weights.table, requires_grad=False)
        self.conv.weight = nn.Parameter(weights.kernel, requires_grad=False)
        self.conv.bias = nn.Parameter(weights.bias, requires_grad=False)

    @property
    def num_frames(self) -> int:
        return self.table.num_embeddings

    def forward(
        self, x: torch.Tensor, rows: Sequence[int], height: int, embed: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        """Tell each frame its place in the clip, then mix neighbours in time and space.

        Args:
            x: [videos · frames, height · width, C], output of the spatial block.
            rows: for each of the T frames of one video its row of the table, each below `num_frames`.
            height: rows of the latent map.
            embed: SVD's `time_pos_embed`, which maps rows of the table, [videos · frames, C], to as many.

        Returns:
            [videos · frames, height · width, C].
        """
        # Cast by hand: ops of torch.nn and of the host differ in how they are asked for a dtype.
        # One row a batch entry, as SVD does it: a matrix product of other size would round otherwise.
        frames = len(rows)
        numbers = torch.tensor(rows, device=x.device).repeat(x.shape[0] // frames)
        table = self.table(numbers).to(x)
        volume = rearrange(x + embed(table)[:, None], "(b t) (h w) c -> b c t h w", t=frames, h=height)
        return rearrange(self.conv(pad_mirrored(volume)), "b c t h w -> (b t) (h w) c")


class PositionLayers(nn.ModuleList):
    """The new parts of all 16 extended layers, in the order of the UNet's forward pass."""

    def __init__(self, weights: Iterable[PositionWeights], ops: Any = nn):
        super().__init__([PositionLayer(w, ops) for w in weights])

    def __iter__(self) -> Iterator[PositionLayer]:
        return (layer for layer in super().__iter__() if isinstance(layer, PositionLayer))

    @property
    def num_frames(self) -> int:
        return next(iter(self)).num_frames


def check_length(frames: int, num_frames: int) -> None:
    """Raise ExVideoError when a clip, or a window of one, is longer than the extension was trained for."""
    if frames > num_frames:
        raise ExVideoError(
            f"This ExVideo extension reaches {num_frames} frames, but the latent has {frames}: "
            f"lower num_frames to at most {num_frames}. Longer videos are made by ExVideo Long Sampler, in versions "
            "of this pack that have it, or with ComfyUI's context windows."
        )


def extended_forward(
    layer: Any,
    position: PositionLayer,
    x: torch.Tensor,
    context: torch.Tensor,
    time_context: torch.Tensor | None,
    timesteps: int,
    image_only_indicator: torch.Tensor | None,
    transformer_options: dict[str, Any],
) -> torch.Tensor:
    """One spatio-temporal transformer layer of SVD's UNet with ExVideo's position layer inside.

    The arguments after `position` are the host's, in its order.

    Args:
        layer: the host's `SpatialVideoTransformer`, whose modules do all the rest.
        position: this layer's new part.
        x: [videos · frames, C, H, W].
        context: image tokens, [videos · frames, tokens, D], equal for all frames of a video.
        time_context: tokens for the temporal block, where they differ from `context`.
        timesteps: T, frames of one video.
        image_only_indicator: as the host's `time_mixer` takes it.
        transformer_options: the host's, handed to both blocks so that attention patches reach them.

    Returns:
        [videos · frames, C, H, W].
    """
    frames, (height, width) = timesteps, x.shape[-2:]
    transformer_options["activations_shape"] = list(x.shape)
    transformer_options["block_index"] = 0
    (spatial_block,) = layer.transformer_blocks
    (temporal_block,) = layer.time_stack

    spatial = layer.proj_in(rearrange(layer.norm(x), "bt c h w -> bt (h w) c"))
    spatial = spatial_block(spatial, context=context, transformer_options=transformer_options)

    rows = transformer_options.get(FRAME_NUMBERS, range(frames))
    temporal = position(spatial, rows, height, layer.time_pos_embed)
    temporal = rearrange(temporal, "(b t) s c -> (b s) t c", t=frames)
    token = (context if time_context is None else time_context)[::frames]
    token = repeat(token, "b n d -> (b s) n d", s=height * width)
    temporal = temporal_block(temporal, context=token, transformer_options=transformer_options)
    temporal = rearrange(temporal, "(b s) t c -> (b t) s c", s=height * width)

    mixed = layer.time_mixer(x_spatial=spatial, x_temporal=temporal, image_only_indicator=image_only_indicator)
    # In SVD's order, whose first operand gives the sum its memory layout: convolutions further on round by it.
    return rearrange(layer.proj_out(mixed), "bt (h w) c -> bt c h w", h=height) + x


def extended_unet(positions: PositionLayers, executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the host's UNet with its 16 spatio-temporal transformers going through `extended_forward`.

    A wrapper in the host's sense: `executor.class_obj` is the live UNet, and calling the executor goes on. The
    UNet is as before when this returns, also by an exception.
    """
    unet = executor.class_obj
    frames = kwargs.get("num_video_frames") or unet.default_num_video_frames
    # The host hands on its options by position or by name, as its version likes.
    options = [value for value in (*args, *kwargs.values()) if isinstance(value, dict) and FRAME_NUMBERS in value]
    rows = options[0][FRAME_NUMBERS] if options else range(frames)
    check_length(max(rows) + 1, positions.num_frames)
    # The layers are looked up anew at each call: hooks may have swapped the model since it was patched.
    layers = [unet.get_submodule(path) for path in LAYERS.values()]
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer, position in zip(layers, positions, strict=True):
            layer.forward = partial(extended_forward, layer, position)
        return executor(*args, **kwargs)
    finally:
        for layer, forward in zip(layers, before, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                layer.forward = forward
