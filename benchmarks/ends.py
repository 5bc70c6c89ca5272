"""Videos that are given their last frame, too: whether they jump to it, and how far off they are before it.

    python -m benchmarks.ends                  about ten minutes on two cores

On the trained tiny model and scenes that nothing was trained on.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from benchmarks.joins import COMMON
from dev.tiny.autoencoder import SIDE
from dev.tiny.data import HELD_OUT, LONG
from dev.tiny.quality import quality
from dev.tiny.reproduce import MODELS
from dev.tiny.scenes import scene
from dev.tiny.ways import Studio
from exvideo_core.pinning import ENDS_FADE

BEFORE = slice(100, LONG - 1)
"""Frames before the last that are looked at."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ends")
    parser.add_argument("--scenes", type=int, nargs="+", default=[11, 4, 7], help="held-out scenes, by number")
    parser.add_argument("--fades", type=int, nargs="+", default=[0, 16, ENDS_FADE, 2 * ENDS_FADE])
    arguments = parser.parse_args()
    studio = Studio(MODELS)
    ways = {"no last frame": studio.extended}
    ways |= {f"led to it over {fade} frames": partial(studio.to_last, last_fade=fade) for fade in arguments.fades}
    print("PSNR in dB and error of place in % of a side, by frames; mean difference between the last two frames, and")
    print(f"that which {1 - COMMON:.0%} of all steps exceed.")
    cells = ["scene", "way", "PSNR, 100 – 126", "place, 100 – 126", "last step", "few exceed"]
    print("| " + " | ".join(cells) + " |\n|" + "---|" * len(cells), flush=True)
    for number in arguments.scenes:
        what = scene(HELD_OUT + number)
        for name, way in ways.items():
            video = way(what, SIDE)
            found = quality(video, what)
            steps = video.diff(dim=0).abs().mean((1, 2, 3))
            psnr, place = float(found.psnr[BEFORE].mean()), 100 * float(found.place[BEFORE].mean())
            cells = [f"{psnr:.1f}", f"{place:.1f}", f"{steps[-1]:.4f}", f"{steps[:-1].quantile(COMMON):.4f}"]
            print(f"| {number} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
