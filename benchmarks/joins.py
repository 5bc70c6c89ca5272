"""Long videos beside the known right ones: how far they drift, and whether their joins are seen.

    python -m benchmarks.joins                 or make bench-long; about half an hour on two cores

On the trained tiny model and scenes that nothing was trained on: ExVideo Long Sampler with different overlaps and in
its windows mode, last-frame chaining of the base as people do it today, and the host's context windows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from dev.tiny.autoencoder import SIDE
from dev.tiny.base import FRAMES
from dev.tiny.data import HELD_OUT, LONG
from dev.tiny.quality import quality
from dev.tiny.reproduce import MODELS
from dev.tiny.scenes import Scene, render, scene
from dev.tiny.ways import Studio
from exvideo_core.flow import Flow, default_flow
from exvideo_core.plan import chain_segments

OVERLAPS = (1, 8, 16, 32)
COMMON = 0.95
"""A join is not seen where this share of the other frames changes more."""
LOST = 20
"""Error of place in % of a side from which on a video shows something else, and errors hardly grow any more."""


class Way(NamedTuple):
    """How a video is made, and the first frames of its parts but for the first part."""

    make: Callable[[Scene], torch.Tensor]
    joins: list[int]


class Changes(NamedTuple):
    """Of each frame but the first two, [T − 2]: how much it differs from the one before, how much the motion turns,
    and by how much the brightness steps."""

    difference: torch.Tensor
    motion: torch.Tensor
    brightness: torch.Tensor


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joins")
    parser.add_argument("--frames", type=int, default=4 * LONG)
    parser.add_argument("--scenes", type=int, default=3, help="held-out scenes")
    parser.add_argument("--ways", nargs="+", default=[""], metavar="PART", help="only those with this in their names")
    arguments = parser.parse_args()
    scenes = [scene(HELD_OUT + number) for number in range(arguments.scenes)]
    ways = _ways(Studio(MODELS), arguments.frames)
    parts = range(0, arguments.frames, LONG)
    print("PSNR in dB and error of place in % of a side, by frames from … on; growth of that error a segment of 128,")
    print(f"over all frames, and up to the first that is {LOST} % off; how far the mean colour of the last 128")
    print("frames is from the right one's, of 255.")
    print("At joins, of the change there by that which 5 % of the other frames exceed (≤ 1 is not seen), the mean and")
    print("how many are not seen: difference from the frame before, turn of the motion, step of brightness.")
    cells = ["way", *(f"{what}, {part}" for what in ("PSNR", "place") for part in parts)]
    cells += ["growth", "until lost", "colour", "difference", "motion", "brightness"]
    print("| " + " | ".join(cells) + " |\n|" + "---|" * len(cells), flush=True)
    flow = default_flow()
    for name, way in ways.items():
        if not any(part in name for part in arguments.ways):
            continue
        videos = [way.make(what) for what in scenes]
        found = [quality(video, what) for video, what in zip(videos, scenes, strict=True)]
        row = [name]
        for measure, scale in (("psnr", 1), ("place", 100)):
            mean = scale * torch.stack([getattr(each, measure) for each in found]).mean(0)
            row += [f"{float(mean[part : part + LONG].mean()):.1f}" for part in parts]
        places = 100 * torch.stack([each.place for each in found]).mean(0)
        row += [f"{growth(some):.1f}" for some in (places, places[: until_lost(places)])]
        row.append(f"{sum(map(off_colour, videos, scenes)) / len(scenes):.1f}")
        seen = [changes(video, flow) for video in videos]
        for kind in Changes._fields:
            ratios = torch.cat([against_others(getattr(each, kind), way.joins) for each in seen])
            row.append(
                f"{float(ratios.mean()):.2f}, {int((ratios <= 1).sum())} of {len(ratios)}" if len(ratios) else "–"
            )
        print("| " + " | ".join(row) + " |", flush=True)


def off_colour(video: torch.Tensor, what: Scene) -> float:
    """The mean difference of red, green and blue, each the mean of a frame, in the last `LONG` frames; of 255."""
    right = render(what, len(video), video.shape[1])
    return 255 * float((video - right)[-LONG:].mean((1, 2)).abs().mean())


def changes(video: torch.Tensor, flow: Flow) -> Changes:
    """What changes at each frame of a video, [T, H, W, 3]."""
    steps = video[1:] - video[:-1]
    frames = video.movedim(-1, 1)
    flows = torch.stack([flow(before, after) for before, after in pairwise(frames)])
    return Changes(
        steps.abs().mean((1, 2, 3))[1:],
        (flows[1:] - flows[:-1]).norm(dim=1).mean((1, 2)),
        steps.mean((1, 2, 3)).abs()[1:],
    )


def against_others(change: torch.Tensor, joins: list[int]) -> torch.Tensor:
    """The change at each join by that which few of the other frames exceed; `change` begins with frame 2."""
    at = torch.tensor([join - 2 for join in joins if join >= 2], dtype=torch.long)
    others = torch.ones(len(change), dtype=torch.bool)
    others[at] = False
    return change[at] / change[others].quantile(COMMON).clamp(min=1e-6)


def growth(errors: torch.Tensor) -> float:
    """By how much an error grows in `LONG` frames: the slope of the line nearest to it, [T]."""
    at = torch.arange(len(errors)) / LONG
    return float(torch.cov(torch.stack([at, errors]))[0, 1] / at.var())


def until_lost(errors: torch.Tensor) -> int:
    """How many frames come before the first whose error is `LOST` or more."""
    lost = (errors >= LOST).nonzero()
    return int(lost[0]) if len(lost) else len(errors)


def _ways(studio: Studio, frames: int) -> dict[str, Way]:
    def chain(overlap: int, **settings: Any) -> Way:
        joins = [segment.new.start for segment in chain_segments(frames, LONG, overlap, 0)[1:]]
        return Way(lambda what: studio.long(what, SIDE, frames, mode="chain", overlap=overlap, **settings), joins)

    ways = {f"chain, overlap {overlap}": chain(overlap) for overlap in OVERLAPS}
    ways["chain, overlap 16, colours of the first"] = chain(16, match_first=True)
    ways["chain, overlap 16, token of the picture"] = chain(16, token_from="picture")
    # Its windows lie elsewhere at each step, so it has no joins.
    ways["windows, overlap 16"] = Way(lambda what: studio.long(what, SIDE, frames, mode="windows", overlap=16), [])
    ways["base, from last frame to last frame"] = Way(
        lambda what: studio.chained(what, SIDE, frames), list(range(FRAMES, frames, FRAMES - 1))
    )
    ways["the host's context windows over the extension"] = Way(
        lambda what: studio.windows_extended(what, SIDE, frames), []
    )
    return ways


if __name__ == "__main__":
    with torch.inference_mode():
        main()
