"""Train the tiny model from nothing: autoencoder, image encoder, base, and by post-tuning its extension.

    python -m dev.tiny                 or make train-tiny

Each stage is kept in .host/tiny when it is done, and not done again; the losses of each are drawn beside it.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from dev.environment import ROOT
from dev.inside import ALIAS, become_host
from dev.tiny.autoencoder import SIDE, Report, train_autoencoder
from dev.tiny.base import FRAMES, train_base
from dev.tiny.encoder import train_encoder
from dev.tiny.scenes import render, scene

FOLDER = ROOT / ".host" / "tiny"
LONG = 128
"""Frames that the extension reaches."""


class Recipe(NamedTuple):
    """Steps and first learning rate of each stage, and how many scenes there are to learn from.

    Scenes of the stages have numbers of their own; those from a million on are held out.
    """

    autoencoder: tuple[int, float] = (1100, 2e-3)
    encoder: tuple[int, float] = (600, 1e-3)
    base: tuple[int, float] = (6000, 1e-3)
    base_scenes: int = 2000
    extension: tuple[int, float] = (1500, 3e-4)
    extension_scenes: int = 300


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.tiny", description="Train the tiny model from nothing.")
    parser.add_argument("--until", choices=["autoencoder", "encoder", "base", "extension"], default="extension")
    until = parser.parse_args().until
    become_host("--cpu")
    recipe, layout = Recipe(), tiny_layout()
    parts = _kept("autoencoder", lambda report: train_autoencoder(layout, *recipe.autoencoder, report))
    if until == "autoencoder":
        return
    parts |= _kept("encoder", lambda report: train_encoder(layout, *recipe.encoder, report))
    if until == "encoder":
        return
    start = _core("tiny").draw_checkpoint(layout)
    learn = Base({**start, **parts}, layout, recipe)
    parts |= _kept("base", learn.train)
    if until == "base":
        return
    _extension(parts, recipe)


def tiny_layout() -> Any:
    """Widths of the tiny model: 32 channels is as narrow as SVD's normalisations allow."""
    tiny, svd = _core("tiny"), _core("svd")
    return replace(tiny.LAYOUT, unet=svd.UNetLayout(channels=32, multipliers=(1, 2, 2, 2), context=64))


class Base:
    """The base's training, on scenes encoded by the parts that are trained already."""

    def __init__(self, checkpoint: dict[str, torch.Tensor], layout: Any, recipe: Recipe):
        self._checkpoint, self._layout, self._recipe = checkpoint, layout, recipe

    def train(self, report: Report) -> dict[str, torch.Tensor]:
        svd = _core("svd")
        unet = {key: tensor for key, tensor in self._checkpoint.items() if key.startswith(svd.UNET_PREFIX)}
        return train_base(unet, self._clips(), *self._recipe.base, report)

    def _clips(self) -> list[Any]:
        """The first frames of many scenes as the model sees them."""
        cache, checkpoint, motion = _core("post_tuning.cache"), _core("host.checkpoint"), _core("post_tuning.motion")
        learning, path = _core("host.learning"), FOLDER / "clips.safetensors"
        if not path.exists():
            networks = (checkpoint.narrow_clip_vision, checkpoint.narrow_vae)
            encode = learning.Encoder(*(build(dict(self._checkpoint), self._layout) for build in networks))
            clips, begun = [], time.monotonic()
            for number in range(self._recipe.base_scenes):
                pixels = render(scene(number), FRAMES, SIDE)
                with torch.inference_mode():
                    clips.append((*encode(pixels), torch.tensor(motion.motion_bucket(motion.motion_score(pixels)))))
                if number % 100 == 99:
                    print(f"scene {number + 1}, {time.monotonic() - begun:.0f} s", flush=True)
            stacks = (torch.stack(part) for part in zip(*clips, strict=True))
            tensors = dict(zip(("latents", "token", "bucket"), stacks, strict=True))
            _core("files").save_tensors(path, tensors, {})
        with _core("files").open_tensors(path, "Remove it.") as (file, _):
            parts = [file.get_tensor(name) for name in ("latents", "token", "bucket")]
        return [cache.Clip(latents, token, int(bucket)) for latents, token, bucket in zip(*parts, strict=True)]


def _extension(parts: dict[str, torch.Tensor], recipe: Recipe) -> None:
    """Write the checkpoint, and the scenes as video files, and post-tune on them as anybody would."""
    files, tiny, export, host = (_core(name) for name in ("files", "tiny", "export", "host"))
    extension, training = _core("extension"), _core("post_tuning.training")
    checkpoint, videos = FOLDER / tiny.CHECKPOINT, FOLDER / "videos"
    half = {key: tensor.half() for key, tensor in parts.items()}
    files.save_tensors(checkpoint, half, {"title": "ExVideo tiny model, trained on scenes"})
    videos.mkdir(exist_ok=True)
    for number in range(recipe.extension_scenes):
        path = videos / f"{number:05}.mp4"
        if not path.exists():
            export.save_video(render(scene(500_000 + number), LONG, SIDE), path, 30, crf=8)
    model, clip_vision, vae = host.load_svd(checkpoint)
    start = extension.new_extension(host.base_weights(model), LONG)
    steps, learning_rate = recipe.extension
    begun = time.monotonic()

    def on_step(progress: Any) -> None:
        if progress.step % 25 == 0:
            _say("extension", progress.step, progress.losses, begun)

    settings = training.Recipe(steps, learning_rate, save_every=100)
    host.post_tune(
        model, start, clip_vision, vae, videos, (SIDE, SIDE), settings, FOLDER / "extension", on_step=on_step
    )


def _kept(stage: str, train: Callable[[Report], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of a stage: as kept, or trained now and kept."""
    files, path = _core("files"), FOLDER / f"{stage}.safetensors"
    if not path.exists():
        losses: list[float] = []
        begun = time.monotonic()

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            if step % 50 == 49:
                _say(stage, step + 1, losses, begun)

        files.save_tensors(path, train(report), {"seconds": f"{time.monotonic() - begun:.0f}"})
        _core("post_tuning.curve").loss_curve(losses).save(path.with_suffix(".png"))
    with files.open_tensors(path, "Remove it.") as (file, shapes):
        return {key: file.get_tensor(key) for key in shapes}


def _say(stage: str, step: int, losses: list[float], begun: float) -> None:
    recent = losses[-50:]
    mean = sum(recent) / len(recent)
    print(f"{stage}: step {step}, loss {mean:.4g}, {time.monotonic() - begun:.0f} s", flush=True)


def _core(name: str) -> Any:
    return importlib.import_module(f"{ALIAS}.exvideo_core.{name}")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    main()
