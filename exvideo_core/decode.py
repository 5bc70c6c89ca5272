"""From latents to frames: SVD's temporal decoder in overlapped windows, blended linearly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

from .plan import Window, blend_weights, loop_window, overlapped_windows

Decoder = Callable[[torch.Tensor], torch.Tensor]
"""Latents [n, 4, h, w] of one window → frames [n, H, W, 3], on the scale the decoder speaks."""


def decode_windows(
    latents: torch.Tensor,
    decode: Decoder,
    window: int = 8,
    overlap: int = 4,
    on_window: Callable[[int, int], None] = lambda done, total: None,
    loop: bool = False,
    centred: bool = False,
) -> torch.Tensor:
    """Decode a whole clip: the frames of `decoded_frames` in one tensor, float32 [T, H, W, 3]."""
    clip: torch.Tensor | None = None
    for number, frame in enumerate(decoded_frames(latents, decode, window, overlap, on_window, loop, centred)):
        if clip is None:
            clip = frame.new_empty(len(latents), *frame.shape)
        clip[number] = frame
    assert clip is not None  # a plan has at least one window
    return clip


def decoded_frames(
    latents: torch.Tensor,
    decode: Decoder,
    window: int = 8,
    overlap: int = 4,
    on_window: Callable[[int, int], None] = lambda done, total: None,
    loop: bool = False,
    centred: bool = False,
) -> Iterator[torch.Tensor]:
    """Decode a clip window by window; a frame in several windows is their weighted mean.

    The decoder's temporal layers see only a window, so frames near its edges are less sure of themselves:
    they count less. The result depends on window, overlap and ramp alone.

    Args:
        latents: [T, 4, h, w].
        decode: decodes one window; linear scale, not clipped, so that blending is exact.
        window, overlap: in frames; as the ExVideo reference, 8 and 4.
        on_window: told (windows done, windows in all) after each.
        loop: whether the first frame follows on the last.
        centred: which ramp they count by, see `plan.blend_weights`: the reference's, or one that counts a window's
            outermost frames less still, whose errors are the largest.

    Yields:
        float32 [H, W, 3], where `decode` put it, T times: each as soon as no later window has a part in it.

    Raises:
        ExVideoError: no frames, or an overlap that is not smaller than the window.
    """
    frames = len(latents)
    windows = overlapped_windows(frames, window, overlap)
    if loop:
        window = loop_window(frames, window)
        overlap = min(overlap, window - 1)
        # A window more at either end, of what comes before and after, and dropped again.
        around = latents[[i % frames for i in range(-window, frames + window)]]
        decoded = decoded_frames(around, decode, window, overlap, on_window, centred=centred)
        yield from itertools.islice(decoded, window, window + frames)
        return
    totals = [0] * frames
    for w in windows:
        for i, weight in enumerate(blend_weights(w, frames, centred)):
            totals[w.start + i] += weight

    waiting: list[torch.Tensor] = []  # frames from `first` on that a later window has a part in
    first = 0
    ends = [w.start for w in windows[1:]] + [frames]
    for done, (w, end) in enumerate(zip(windows, ends, strict=True), start=1):
        part = decode(latents[w.start : w.stop]).float()
        for i, weight in enumerate(blend_weights(w, frames, centred)):
            at = w.start + i - first
            if at == len(waiting):
                waiting.append(torch.zeros_like(part[i]))
            waiting[at].add_(part[i], alpha=weight / totals[w.start + i])
        del part
        on_window(done, len(windows))
        while first < end:
            yield waiting.pop(0)
            first += 1


def decode_tiles(
    latents: torch.Tensor, decode: Decoder, rows: Sequence[Window], columns: Sequence[Window]
) -> torch.Tensor:
    """Decode a window in spatial tiles, blended linearly where they overlap; of one tile, just that.

    Args:
        latents: [n, 4, h, w].
        decode: decodes one tile.
        rows, columns: the tiles' extents in cells, all their combinations.

    Returns:
        [n, H, W, 3]; float32 where there are several tiles.
    """
    if len(rows) == len(columns) == 1:
        return decode(latents)
    blended = weights = torch.zeros(0)
    for row, column in itertools.product(rows, columns):
        tile = decode(latents[:, :, row.start : row.stop, column.start : column.stop]).float()
        scale = tile.shape[1] // row.frames
        height, width = scale * rows[-1].stop, scale * columns[-1].stop
        if not len(blended):
            blended, weights = (
                tile.new_zeros(len(tile), height, width, tile.shape[-1]),
                tile.new_zeros(height, width, 1),
            )
        down, across = (Window(scale * tiles.start, scale * tiles.stop) for tiles in (row, column))
        weight = tile.new_tensor(blend_weights(down, height)).outer(tile.new_tensor(blend_weights(across, width)))
        here = slice(down.start, down.stop), slice(across.start, across.stop)
        blended[:, here[0], here[1]].add_(tile * weight[..., None])
        weights[here].add_(weight[..., None])
    return blended.div_(weights)
