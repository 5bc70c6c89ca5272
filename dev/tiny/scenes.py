"""Endless little videos of which the first frame tells the rest.

A shape moves over a plain background. Its kind is its path, and its bright half is its front:

- a disc goes straight on, along its row or its column, and bounces off the edges,
- a square goes round the middle of the picture,
- a triangle goes round in small circles, always to its right.

So whoever sees any frame, and knows how many frames go into a second, knows all that follow: the quality of a video
made from it is a number.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

KINDS = ("disc", "square", "triangle")
RING = "ring"
"""A shape that nothing is trained on; it moves as a disc does, which it looks most like."""
MARGIN = 0.02
"""Between shapes and the edges of the picture, whose sides are 1."""
CIRCLE = 0.14
"""Radius of a triangle's circles."""
SPEED = 0.125
"""Sides of the picture a second: in the 4 s of 128 frames a shape goes about half a side."""
QUICK, PACE = 0.05, 0.02
"""Radius times speed in the scenes that the first rounds learn from: small shapes are fast there, and discs go in any
direction. So more happens in them than a tiny model can tell from a picture."""


@dataclass(frozen=True)
class Scene:
    """What there is to see.

    Attributes:
        kind: of `KINDS`, or `RING`.
        radius: of the shape, where a side of the picture is 1.
        place: of its middle in the first frame, (x, y).
        heading: where it goes first, in radians; x grows to the right, y downwards.
        colour: of the shape, RGB in [0, 1].
        sky, ground: of the background at the top and at the bottom.
        speed: sides a second.
    """

    kind: str
    radius: float
    place: tuple[float, float]
    heading: float
    colour: tuple[float, float, float]
    sky: tuple[float, float, float]
    ground: tuple[float, float, float]
    speed: float = SPEED

    def at(self, seconds: float) -> tuple[float, float, float]:
        """Where the shape is, x and y, and where it is heading."""
        x, y = self.place
        way = self.speed * seconds
        if self.kind in ("disc", RING):
            ahead = x + way * math.cos(self.heading), y + way * math.sin(self.heading)
            (x, back_x), (y, back_y) = (_bounced(place, self.radius + MARGIN) for place in ahead)
            return x, y, math.atan2(back_y * math.sin(self.heading), back_x * math.cos(self.heading))
        if self.kind == "square":
            out = math.hypot(x - 0.5, y - 0.5)
            angle = math.atan2(y - 0.5, x - 0.5) + way / out
            return 0.5 + out * math.cos(angle), 0.5 + out * math.sin(angle), angle + math.pi / 2
        # The middle of its circle lies to its right.
        turned = self.heading + way / CIRCLE
        x += CIRCLE * (math.sin(turned) - math.sin(self.heading))
        y += CIRCLE * (math.cos(self.heading) - math.cos(turned))
        return x, y, turned


def scene(
    seed: int,
    kinds: Sequence[str] = KINDS,
    hues: tuple[float, float] = (0.0, 0.8),
    radii: tuple[float, float] = (0.11, 0.19),
    pace: float | None = None,
) -> Scene:
    """The scene of a seed.

    Args:
        seed: any number.
        kinds: shapes that there may be.
        hues: colours that shapes may have, around the colour wheel from 0 to 1.
        radii: sizes that they may have.
        pace: radius times speed; None: all are equally fast, and discs keep to their row or column.
    """
    chance = random.Random(seed)
    kind, radius = chance.choice(kinds), chance.uniform(*radii)
    heading = chance.uniform(-math.pi, math.pi)
    far = 0.5 - radius - MARGIN
    if kind == "square":
        out, angle = chance.uniform(0.15, far), chance.uniform(-math.pi, math.pi)
        place, heading = (0.5 + out * math.cos(angle), 0.5 + out * math.sin(angle)), angle + math.pi / 2
    else:
        near = far - CIRCLE if kind == "triangle" else far
        place = 0.5 + chance.uniform(-near, near), 0.5 + chance.uniform(-near, near)
    if pace is None and kind in ("disc", RING):
        heading = math.pi / 2 * round(heading / (math.pi / 2))
    if kind == "triangle":
        place = place[0] + CIRCLE * math.sin(heading), place[1] - CIRCLE * math.cos(heading)
    colour = colorsys.hsv_to_rgb(chance.uniform(*hues), 0.85, chance.uniform(0.6, 0.8))
    hue = chance.random()
    # Of one brightness in all scenes: networks as narrow as the tiny model's lose it to their normalisations.
    sky, ground = (colorsys.hsv_to_rgb(hue, 0.3, value) for value in (0.6, 0.2))
    speed = SPEED if pace is None else pace / radius
    return Scene(kind, radius, place, heading, colour, sky, ground, speed)


def render(what: Scene, frames: int, side: int, fps: float = 30.0, first: int = 0) -> torch.Tensor:
    """The video of a scene from frame `first` up to `frames`: [T, side, side, 3], float32 in [0, 1]."""
    centres = (torch.arange(side) + 0.5) / side
    background = backdrop(what, side)
    colour = torch.tensor(what.colour)
    front = torch.lerp(colour, torch.ones(3), 0.75)
    video = []
    for frame in range(first, frames):
        x, y, heading = what.at(frame / fps)
        right, down = (centres - x)[None, :], (centres - y)[:, None]
        # Along the heading, and to its right.
        u = right * math.cos(heading) + down * math.sin(heading)
        v = -right * math.sin(heading) + down * math.cos(heading)
        inside = _edge(_distance(what.kind, u, v, what.radius), side)
        painted = torch.lerp(colour, front, _edge(-u, side)[..., None])
        video.append(torch.lerp(background, painted, inside[..., None]))
    return torch.stack(video)


def backdrop(what: Scene, side: int) -> torch.Tensor:
    """The scene without its shape: [side, side, 3]."""
    down = (torch.arange(side) + 0.5) / side
    sky, ground = torch.tensor(what.sky), torch.tensor(what.ground)
    return torch.lerp(sky, ground, down[:, None, None]).expand(side, side, 3)


def _bounced(place: float, margin: float) -> tuple[float, int]:
    """A place between the edges, and whether the way there is turned round (−1) or not (1)."""
    room = 1 - 2 * margin
    turns, rest = divmod(place - margin, room)
    return (margin + rest, 1) if turns % 2 == 0 else (1 - margin - rest, -1)


def _distance(kind: str, u: torch.Tensor, v: torch.Tensor, radius: float) -> torch.Tensor:
    """From the outline of a shape that looks along u; negative inside."""
    if kind == "disc":
        return torch.hypot(u, v) - radius
    if kind == RING:
        return (torch.hypot(u, v) - 0.7 * radius).abs() - 0.3 * radius
    if kind == "square":
        return torch.maximum(u.abs(), v.abs()) - 0.85 * radius
    # A triangle whose tip is ahead.
    return torch.maximum(-u - 0.6 * radius, 0.5 * u + math.sqrt(0.75) * v.abs() - 0.6 * radius)


def _edge(distance: torch.Tensor, side: int) -> torch.Tensor:
    """1 inside, 0 outside, over a pixel at the edge."""
    return (0.5 - distance * side).clamp(0, 1)
