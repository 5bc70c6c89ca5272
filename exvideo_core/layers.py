"""The extended temporal layer (ExVideo, section 3.2): what a layer of SVD does once a clip may be long.

Two things are new against SVD: a trained table of positions instead of a sinusoid, and a 3-D convolution
before temporal attention. The rest of the layer, spatial part included, is the host's own modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from . import chunked
from .extension import TRAINED_FRAMES, PositionWeights, new_position_weights
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
        frames = len(rows)
        # One row a batch entry, as SVD does it: a matrix product of other size would round otherwise.
        embedded = self.embedded(list(rows) * (x.shape[0] // frames), x, embed)
        volume = rearrange(x + embedded[:, None], "(b t) (h w) c -> b c t h w", t=frames, h=height)
        return rearrange(self.conv(pad_mirrored(volume)), "b c t h w -> (b t) (h w) c")

    def embedded(self, rows: Sequence[int], x: torch.Tensor, embed: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Rows of the position table through SVD's `time_pos_embed`: [len(rows), C], as x in dtype and device."""
        # Not waited for, or a GPU would stand still at each of the 16 layers.
        numbers = torch.tensor(rows).to(x.device, non_blocking=True)
        # Cast by hand: ops of torch.nn and of the host differ in how they are asked for a dtype.
        return embed(self.table(numbers).to(x))


class PositionLayers(nn.ModuleList):
    """The new parts of all 16 extended layers, in the order of the UNet's forward pass."""

    def __init__(self, weights: Iterable[PositionWeights], ops: Any = nn):
        weights = list(weights)
        super().__init__([PositionLayer(w, ops) for w in weights])
        self._are_new = all(_is_new(w) for w in weights)

    def __iter__(self) -> Iterator[PositionLayer]:
        return (layer for layer in super().__iter__() if isinstance(layer, PositionLayer))

    @property
    def num_frames(self) -> int:
        return next(iter(self)).num_frames

    def weights(self) -> Iterator[PositionWeights]:
        """Of each layer, copied to main memory."""
        for layer in self:
            kept = (layer.table.weight, layer.conv.weight, layer.conv.bias)
            yield PositionWeights(*(weight.detach().to("cpu", copy=True) for weight in kept))

    def change_nothing_on(self, rows: Sequence[int]) -> bool:
        """Whether a clip of these rows is just as SVD itself would have it: short, and no training behind it."""
        return self._are_new and len(rows) <= TRAINED_FRAMES and list(rows) == list(range(len(rows)))


def _is_new(weights: PositionWeights) -> bool:
    """Whether a layer's new part is as before any training, bit for bit."""
    if weights.table.is_meta or (weights.kernel.shape[0] > 1 and weights.kernel[0, 1, 1, 1, 1] != 0):
        return False
    start = new_position_weights(*weights.table.shape)
    return all(torch.equal(ours.float(), new) for ours, new in zip(weights, start, strict=True))


def check_length(frames: int, num_frames: int, is_window: bool = False) -> None:
    """Raise ExVideoError when a clip, or a window of one, is longer than the extension was trained for."""
    if frames <= num_frames:
        return
    reach = f"This ExVideo extension reaches {num_frames} frames, but"
    if is_window:
        raise ExVideoError(f"{reach} a context window has {frames}: shorten the windows to at most {num_frames}.")
    raise ExVideoError(
        f"{reach} the latent has {frames}: lower num_frames to at most {num_frames}. Longer videos are made by ExVideo "
        "Long Sampler, or with ComfyUI's context windows."
    )


def extended_res_block(
    layer: Any,
    work: chunked.Work,
    x: torch.Tensor,
    emb: torch.Tensor,
    num_video_frames: int,
    image_only_indicator: torch.Tensor | None = None,
) -> torch.Tensor:
    """The host's `VideoResBlock`, in chunks; the host's own for marked single images, and where layers in it are led
    elsewhere, for ours takes their weights and no more."""
    parts = (part for part in layer.modules() if part is not layer)
    if image_only_indicator is not None or any(map(chunked.is_led, parts)):
        if work.pending:
            x, work.pending = torch.cat([part[:] for part in work.pending], 1), []
        return type(layer).forward(layer, x, emb, num_video_frames, image_only_indicator)
    if torch.is_grad_enabled():
        return chunked.differentiable.res_block(work, layer, x, emb, num_video_frames)
    return chunked.res_block(work, layer, x, emb, num_video_frames)


def extended_forward(
    layer: Any,
    position: PositionLayer,
    work: chunked.Work | None,
    x: torch.Tensor,
    context: torch.Tensor,
    time_context: torch.Tensor | None,
    timesteps: int,
    image_only_indicator: torch.Tensor | None,
    transformer_options: dict[str, Any],
) -> torch.Tensor:
    """One spatio-temporal transformer layer of SVD's UNet with ExVideo's position layer inside.

    The arguments after `work` are the host's, in its order.

    Args:
        layer: the host's `SpatialVideoTransformer`, whose modules do all the rest.
        position: this layer's new part.
        work: how it is done in chunks; None runs the host's blocks as they are, for the patches that are on them, and
            so does what others have put in the way of one of their modules.
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
    rows = transformer_options.get(FRAME_NUMBERS, range(frames))
    one_token = context.shape[1] == 1 and (time_context is None or time_context.shape[1:2] == (1,))
    if work is not None and one_token and not chunked.leads_past_others(layer):
        run = chunked.differentiable.transformer if torch.is_grad_enabled() else chunked.transformer
        return run(work, layer, position, rows, x, context, time_context, transformer_options)
    (spatial_block,) = layer.transformer_blocks
    (temporal_block,) = layer.time_stack

    spatial = layer.proj_in(rearrange(layer.norm(x), "bt c h w -> bt (h w) c"))
    spatial = spatial_block(spatial, context=context, transformer_options=transformer_options)

    temporal = position(spatial, rows, height, layer.time_pos_embed)
    temporal = rearrange(temporal, "(b t) s c -> (b s) t c", t=frames)
    token = (context if time_context is None else time_context)[::frames]
    token = repeat(token, "b n d -> (b s) n d", s=height * width)
    temporal = temporal_block(temporal, context=token, transformer_options=transformer_options)
    temporal = rearrange(temporal, "(b s) t c -> (b t) s c", s=height * width)

    mixed = layer.time_mixer(x_spatial=spatial, x_temporal=temporal, image_only_indicator=image_only_indicator)
    # In SVD's order, whose first operand gives the sum its memory layout: convolutions further on round by it.
    return rearrange(layer.proj_out(mixed), "bt (h w) c -> bt c h w", h=height) + x
