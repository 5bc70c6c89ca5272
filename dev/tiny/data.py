"""The scenes that base and extension learn from: video files, encoded by what is trained already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dev.inside import core
from dev.tiny.autoencoder import SIDE
from dev.tiny.base import APART, FRAMES, Seen
from dev.tiny.quick import half_precision
from dev.tiny.scenes import render, scene

LONG, FPS = 128, 30
"""Frames of a scene, frames a second."""
FIRST = 500_000
"""Number of the first of these scenes; autoencoder and image encoder learn from those before."""
PLAIN = 5000
"""Number, after that, of the first of the scenes without a pace that anything is trained on."""
HELD_OUT = 1_000_000
"""Number of the first scene that nothing is trained on."""


def videos_of(folder: Path, pace: float | None, first: int = 0) -> Path:
    """The place of the videos of a pace that begin with a scene."""
    return folder / f"videos, pace {pace}, from {first}"


def write_videos(folder: Path, count: int, pace: float | None, first: int = 0) -> None:
    """Scenes of a pace as anybody's videos would be: files, named by their numbers after `FIRST`."""
    export, files = core("export"), core("files")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        path = folder / f"{number:05}.mp4"
        if not path.exists():
            with files.whole_or_nothing(path) as partial:
                export.save_video(render(scene(FIRST + number, pace=pace), LONG, SIDE), partial, FPS, crf=6)


def encoded(folder: Path, cache: Path, clip_vision: Any, vae: Any) -> Any:
    """The clips of a folder of `write_videos`, through the cache of post-tuning."""
    caching, learning = core("post_tuning.cache"), core("host.learning")
    shape = core("types").ClipShape(LONG, SIDE, SIDE)

    def said(done: int, of: int) -> None:
        if done % 64 == 0:
            print(f"scene {done} of {of}", flush=True)

    # Latents need no more digits.
    with torch.inference_mode(), half_precision():
        return caching.cache_clips(folder, shape, FPS, learning.Encoder(clip_vision, vae), cache, said)


def scenes_seen(
    folder: Path, pace: float | None, first: int, cache: Path, clip_vision: Any, vae: Any
) -> Iterator[Seen]:
    """The scenes in a folder of `write_videos` as the base sees them."""
    conditioning, clips = core("conditioning"), encoded(folder, cache, clip_vision, vae)
    with torch.inference_mode():
        for number in range(len(clips)):
            clip = clips[number]
            pictures = render(scene(FIRST + first + number, pace=pace), LONG - FRAMES + 1, SIDE)[::APART]
            pixels = [
                conditioning.clip_pixels(
                    picture[None], clip_vision.image_size, clip_vision.image_mean, clip_vision.image_std
                )
                for picture in pictures
            ]
            tokens = clip_vision.model(pixel_values=torch.cat(pixels), intermediate_output=-2)[2]
            yield Seen(clip.latents, tokens[:, None].float(), clip.motion_bucket_id)
