"""The paper's claim in miniature: five times the frames, quality kept, by training the temporal blocks alone.

    python -m dev.tiny.reproduce                 or make reproduce; about half an hour on two cores

On scenes that nothing was trained on, whose right videos are known: the base on the 25 frames that it knows, ways to
make 128 frames of it, and the post-tuned extension; then colours, sizes, a shape and a resolution that were not
trained on. Prints tables and draws a picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from dev.environment import ROOT
from dev.tiny.autoencoder import SIDE
from dev.tiny.base import FRAMES
from dev.tiny.data import HELD_OUT, LONG
from dev.tiny.quality import astray, by_parts, flicker, frechet, quality
from dev.tiny.scenes import RING, Scene, render, scene
from dev.tiny.ways import Studio

MODELS = ROOT / ".host" / "tiny" / "models"
PICTURE = ROOT / "assets" / "reproduce.png"
PARTS = {"0 – 24": (0, FRAMES), "25 – 63": (FRAMES, 64), "64 – 127": (64, LONG)}
SHOWN = (0, 8, 16, 24, 32, 48, 64, 80, 96, 112, 127)
"""Frames in the picture."""

Way = Callable[[Scene, int], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.tiny.reproduce")
    parser.add_argument("--scenes", type=int, default=12, help="held-out scenes that each way makes a video of")
    parser.add_argument("--extension", type=Path, help="in the place of the trained one")
    arguments = parser.parse_args()
    studio = Studio(MODELS, arguments.extension)
    ways: dict[str, Way] = {
        "base, 25 frames": studio.base,
        "base, 128 frames": studio.base_too_long,
        "new extension, untrained": studio.untrained,
        "windows over the base": studio.windows,
        "base, from last frame to last frame": studio.chained,
        "post-tuned extension": studio.extended,
    }
    scenes = [scene(HELD_OUT + number) for number in range(arguments.scenes)]
    _heading(["way"])
    rows: list[tuple[str, torch.Tensor]] = [("the right video", render(scenes[0], LONG, SIDE))]
    for name, way in ways.items():
        videos = [way(what, SIDE) for what in scenes]
        _row([name], studio, videos, scenes)
        rows.append((name, videos[0]))
    contact_sheet(rows).save(PICTURE)

    others: dict[str, tuple[Callable[[int], Scene], int]] = {
        "unseen colours": (partial(scene, hues=(0.85, 1.0)), SIDE),
        "smaller shapes": (partial(scene, radii=(0.085, 0.105)), SIDE),
        "larger shapes": (partial(scene, radii=(0.195, 0.22)), SIDE),
        "an unseen shape, rings": (partial(scene, kinds=(RING,)), SIDE),
        "96×96 pixels": (scene, 96),
    }
    print()
    _heading(["what is new", "way"])
    for name, (draw, side) in others.items():
        some = [draw(HELD_OUT + number) for number in range(max(arguments.scenes // 2, 1))]
        for by in ("base, 25 frames", "post-tuned extension"):
            _row([name, by], studio, [ways[by](what, side) for what in some], some)


def _heading(first: list[str]) -> None:
    measures = [f"{measure}, {part}" for measure in ("PSNR", "SSIM", "place") for part in PARTS]
    cells = [*first, *measures, "astray", "flicker", "Fréchet"]
    print("PSNR in dB; place: error of the shape's place in % of a side; each by frames. Astray: that error at the end")
    print("of the video, its last fifth, in % of the way that the shape has gone. Flicker: 1 is right.")
    print("| " + " | ".join(cells) + " |\n|" + "---|" * len(cells))


def _row(first: list[str], studio: Studio, videos: list[torch.Tensor], scenes: list[Scene]) -> None:
    found = [quality(video, what) for video, what in zip(videos, scenes, strict=True)]
    cells = list(first)
    for measure, scale, digits in (("psnr", 1, 1), ("ssim", 1, 3), ("place", 100, 1)):
        mean = torch.stack([getattr(each, measure) for each in found]).mean(0)
        cells += [f"{scale * value:.{digits}f}" for value in by_parts(mean, PARTS).values()]
    pairs = zip(found, scenes, strict=True)
    cells.append(f"{100 * sum(astray(each.place, what) for each, what in pairs) / len(scenes):.0f}")
    flickers = [flicker(video, what) for video, what in zip(videos, scenes, strict=True)]
    cells.append(f"{sum(flickers) / len(flickers):.2f}")
    right = [render(what, len(video), video.shape[1]) for video, what in zip(videos, scenes, strict=True)]
    cells.append(f"{frechet(*(torch.cat([studio.features(v) for v in each]) for each in (videos, right))):.2f}")
    print("| " + " | ".join(cells).replace("nan", "–") + " |", flush=True)


def contact_sheet(rows: Iterable[tuple[str, torch.Tensor]], scale: int = 1) -> Image.Image:
    """Some frames of videos, a row each under its name; a blank where a video is shorter."""
    rows = list(rows)
    side = scale * max(video.shape[1] for _, video in rows)
    line = side + 16
    sheet = Image.new("RGB", (len(SHOWN) * (side + 2), len(rows) * line + 14), (255, 255, 255))
    drawing = ImageDraw.Draw(sheet)
    for column, frame in enumerate(SHOWN):
        drawing.text((column * (side + 2) + 2, 0), f"frame {frame}", fill=(90, 90, 90))
    for row, (name, video) in enumerate(rows):
        top = 14 + row * line
        drawing.text((2, top), name, fill=(20, 20, 20))
        for column, frame in enumerate(SHOWN):
            if frame < len(video):
                pixels = (video[frame] * 255).round().clamp(0, 255).byte().numpy()
                picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(picture, (column * (side + 2), top + 14))
    return sheet


if __name__ == "__main__":
    with torch.inference_mode():
        main()
