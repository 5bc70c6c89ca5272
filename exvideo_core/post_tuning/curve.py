"""The losses of a training as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

INK, PALE, PAPER = (40, 90, 200), (190, 205, 235), (255, 255, 255)


def loss_curve(losses: Sequence[float], width: int = 640, height: int = 360) -> Image.Image:
    """Losses over steps on a logarithmic scale: each one pale, and their running mean.

    One loss says little, for it depends on the noise level that was drawn.
    """
    picture = Image.new("RGB", (width, height), PAPER)
    drawing = ImageDraw.Draw(picture)
    values = [math.log10(max(loss, 1e-12)) for loss in losses if math.isfinite(loss)]
    if not values:
        return picture
    means, mean, keep = [], values[0], 1 - 1 / min(100, 1 + len(values) / 10)
    for value in values:
        mean = keep * mean + (1 - keep) * value
        means.append(mean)
    left, right, top, bottom = 60, width - 16, 16, height - 32
    low, high = math.floor(min(values)), math.ceil(max(values))
    high = max(high, low + 1)

    def place(step: int, value: float) -> tuple[float, float]:
        x = left + (right - left) * step / max(len(values) - 1, 1)
        return x, bottom - (bottom - top) * (value - low) / (high - low)

    for power in range(low, high + 1):
        _, y = place(0, power)
        drawing.line([(left, y), (right, y)], fill=(230, 230, 230))
        drawing.text((8, y - 6), f"{10.0**power:g}", fill=(90, 90, 90))
    for line, ink, thickness in ((values, PALE, 1), (means, INK, 2)):
        drawing.line([place(step, value) for step, value in enumerate(line)], fill=ink, width=thickness)
    drawing.text((left, bottom + 10), f"loss, {len(values)} steps; now {10 ** means[-1]:.3g}", fill=(90, 90, 90))
    return picture
