"""From latents to frames: SVD's temporal decoder in overlapped windows, blended linearly."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .plan import blend_weights, overlapped_windows

Decoder = Callable[[torch.Tensor], torch.Tensor]
"""Latents [n, 4, h, w] of one window → frames [n, H, W, 3], on the scale the decoder speaks."""


def decode_windows(
    latents: torch.Tensor,
    decode: Decoder,
    window: int = 8,
    overlap: int = 4,
    on_window: Callable[[int, int], None] = lambda done, total: None,
) -> torch.Tensor:
    """Decode a clip window by window; a frame in several windows is their weighted mean.

    The decoder's temporal layers see only a window, so frames near its edges are less sure of themselves:
    they count less (see `plan.blend_weights`). The result depends on window and overlap alone.

    Args:
        latents: [T, 4, h, w].
        decode: decodes one window; linear scale, not clipped, so that blending is exact.
        window, overlap: in frames; as the ExVideo reference, 8 and 4.
        on_window: told (windows done, windows in all) after each.

    Returns:
        float32 [T, H, W, 3], where `decode` put it.

    Raises:
        ExVideoError: no frames, or an overlap that is not smaller than the window.
    """
    frames = len(latents)
    windows = overlapped_windows(frames, window, overlap)
    totals = [0] * frames
    for w in windows:
        for i, weight in enumerate(blend_weights(w, frames)):
            totals[w.start + i] += weight

    blended: torch.Tensor | None = None
    for done, w in enumerate(windows, start=1):
        decoded = decode(latents[w.start : w.stop]).float()
        if blended is None:
            blended = decoded.new_zeros(frames, *decoded.shape[1:])
        for i, weight in enumerate(blend_weights(w, frames)):
            # One frame at a time: a weighted copy of the whole window would cost as much as the window.
            blended[w.start + i].add_(decoded[i], alpha=weight / totals[w.start + i])
        on_window(done, len(windows))
    assert blended is not None  # a plan has at least one window
    return blended
