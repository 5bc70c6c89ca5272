"""Train the tiny model from nothing: autoencoder, image encoder, base, and by post-tuning its extension.

    python -m dev.tiny                 or make train-tiny

Each stage is kept in assets/tiny when it is done, in float16, with its losses drawn beside it, and not done again:
remove its file, and those after it, to train it anew.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dev.environment import ROOT
from dev.inside import become_host, core
from dev.tiny.autoencoder import SIDE, Report, train_autoencoder
from dev.tiny.base import train_base
from dev.tiny.data import LONG, PLAIN, encoded, scenes_seen, videos_of, write_videos
from dev.tiny.encoder import train_encoder
from dev.tiny.quick import quick_group_norms
from dev.tiny.scenes import PACE, QUICK
from dev.tiny.trained import KEPT

FOLDER = ROOT / ".host" / "tiny"
"""Where all else goes: scenes encoded, videos, the checkpoint that is put together."""
CACHE = FOLDER / "post_tuning_cache"
"""Where post-tuning keeps the encoded clips: next to its runs."""
_NOTES = {"license": "GPL-3.0-or-later", "made by": "make train-tiny"}


class Scenes(NamedTuple):
    """What a round learns from: the pace of its scenes, how many there are, and the number of the first."""

    pace: float | None
    amount: int
    first: int = 0


class Grounding(NamedTuple):
    """A round of the base's training."""

    steps: int
    learning_rate: float
    learns_from: Scenes


class Tuning(NamedTuple):
    """A round of post-tuning, at noise levels from `sigma_min` up, with some clips to a step."""

    steps: int
    learning_rate: float
    learns_from: Scenes
    sigma_min: float = 0.0
    clips: int = 1


class Course(NamedTuple):
    """Rounds of the base, then of its extension; the first of either goes on where the course before ended.

    Attributes:
        averaged: rounds of the extension, of this course, whose mean it ends with.
        seed: of the extension's first round; the others have the numbers after it.
    """

    base: Sequence[Grounding]
    extension: Sequence[Tuning]
    averaged: Sequence[int] = (-1,)
    seed: int = 0


_MANY, _MORE = Scenes(None, 2700, PLAIN + 756), Scenes(None, 2000, PLAIN + 3456)
"""None of which a course before those that learn from them has seen; the last learns from both again."""


class Recipe(NamedTuple):
    """Steps and learning rate of autoencoder and image encoder, then courses of what is trained by rounds."""

    autoencoder: tuple[int, float] = (850, 2e-3)
    encoder: tuple[int, float] = (600, 1e-3)
    courses: Sequence[Course] = (
        # Of scenes in which discs go in any direction, and small shapes are faster. On 480 alone the loss of the
        # extension falls on, and videos of others grow no better. What came after the sixth of its rounds, at high
        # noise levels, made late frames better and early ones worse; the mean lies between.
        Course(
            base=(
                Grounding(2400, 1e-3, Scenes(QUICK, 320)),
                Grounding(2400, 1e-3, Scenes(QUICK, 640)),
                Grounding(2400, 1e-3, Scenes(PACE, 480)),
            ),
            extension=(
                Tuning(4000, 1e-3, Scenes(PACE, 480)),
                Tuning(2000, 7e-4, Scenes(PACE, 1000, 480)),
                Tuning(600, 2e-4, Scenes(PACE, 1000, 480)),
                Tuning(1600, 3e-4, Scenes(PACE, 1000, 1480)),
                Tuning(900, 1e-4, Scenes(PACE, 1000, 1480)),
                Tuning(500, 3e-5, Scenes(PACE, 1000, 1480)),
                Tuning(1500, 5e-4, Scenes(PACE, 1000, 2480), sigma_min=10.0),
                Tuning(900, 2e-4, Scenes(PACE, 1000, 3480), sigma_min=10.0),
                Tuning(900, 7e-5, Scenes(PACE, 1000, 2480), sigma_min=3.0),
                Tuning(700, 2.5e-5, Scenes(PACE, 1000, 3480)),
                Tuning(800, 1e-4, Scenes(PACE, 1000, 2480)),
                Tuning(500, 3e-5, Scenes(PACE, 1000, 3480)),
            ),
            averaged=(5, 11),
        ),
        # Of the scenes that both are for.
        Course(base=(), extension=(Tuning(350, 4e-4, Scenes(None, 755, PLAIN), sigma_min=3.0),), seed=20),
        Course(
            base=(Grounding(450, 3e-4, Scenes(None, 640, PLAIN)),),
            extension=(
                Tuning(500, 3e-4, Scenes(None, 755, PLAIN), sigma_min=3.0, clips=2),
                Tuning(250, 1.2e-4, Scenes(None, 755, PLAIN), clips=2),
                Tuning(120, 4e-5, Scenes(None, 755, PLAIN), clips=2),
            ),
            seed=30,
        ),
        Course(
            base=(),
            extension=(
                Tuning(1700, 3e-4, _MANY, sigma_min=3.0, clips=2),
                Tuning(1300, 1.5e-4, _MANY, clips=2),
                Tuning(700, 5e-5, _MANY, clips=2),
            ),
            seed=40,
        ),
        Course(
            base=(),
            extension=(
                Tuning(800, 2.5e-4, _MORE, sigma_min=3.0, clips=2),
                Tuning(700, 1.2e-4, _MORE, clips=2),
                Tuning(500, 4e-5, _MORE, clips=2),
            ),
            seed=50,
        ),
        Course(
            base=(),
            extension=(
                Tuning(1300, 2.5e-4, _MANY, sigma_min=3.0, clips=2),
                Tuning(1000, 1.2e-4, _MORE, clips=2),
                Tuning(700, 4e-5, _MANY, clips=2),
            ),
            seed=60,
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.tiny", description="Train the tiny model from nothing.")
    parser.add_argument("--until", choices=["autoencoder", "encoder", "base", "extension"], default="extension")
    until = parser.parse_args().until
    become_host("--cpu")
    for folder in (KEPT, FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
    train(Recipe(), until)


def train(recipe: Recipe, until: str = "extension") -> None:
    """All stages that are not kept yet, up to one."""
    layout = tiny_layout()
    parts = _kept("autoencoder", lambda report: train_autoencoder(layout, *recipe.autoencoder, report))
    if until == "autoencoder":
        return
    parts |= _kept("encoder", lambda report: train_encoder(layout, *recipe.encoder, report))
    if until == "encoder":
        return
    parts = {**core("tiny").draw_checkpoint(layout), **parts}
    turn = 0
    for number, course in enumerate(recipe.courses):
        for of in course.base:
            parts |= _kept("base", partial(_base, dict(parts), layout, of, turn), turn)
            turn += 1
        if _done(KEPT / "extension.safetensors") > number:
            continue
        if until == "base":
            return
        _extension(parts, course, number)


def tiny_layout() -> Any:
    """Widths of the tiny model, whose normalisations have 32 groups as SVD's: 32 channels is as narrow as they allow.

    A group of one channel loses how bright that is, so pixels get 64.
    """
    tiny, svd = core("tiny"), core("svd")
    unet = svd.UNetLayout(channels=32, multipliers=(1, 2, 2, 2), context=64)
    return replace(tiny.LAYOUT, unet=unet, vae=svd.VAELayout(channels=64, multipliers=(1, 1, 1, 1)))


def _base(
    checkpoint: dict[str, torch.Tensor], layout: Any, of: Grounding, turn: int, report: Report
) -> dict[str, torch.Tensor]:
    """A round of the base's training, on scenes encoded by the parts that are trained already."""
    build, prefix = core("host.checkpoint"), core("svd").UNET_PREFIX
    parts = (make(dict(checkpoint), layout) for make in (build.narrow_clip_vision, build.narrow_vae))
    steps, learning_rate, (pace, _, first) = of
    scenes = list(scenes_seen(_videos(of.learns_from), pace, first, CACHE, *parts))
    unet = {key: tensor for key, tensor in checkpoint.items() if key.startswith(prefix)}
    return train_base(unet, scenes, steps, learning_rate, turn, report)


def _extension(parts: dict[str, torch.Tensor], course: Course, number: int) -> None:
    """Post-tune, as anybody would."""
    extension, host, post_tuning = core("extension"), core("host"), core("post_tuning.recipe")
    path = KEPT / "extension.safetensors"
    checkpoint = FOLDER / core("tiny").CHECKPOINT
    half = {key: tensor.half() for key, tensor in parts.items()}
    core("files").save_tensors(checkpoint, half, {"title": "ExVideo tiny model, trained on scenes"})
    model, clip_vision, vae = host.load_svd(checkpoint)
    learned = extension.read_extension(path) if number else extension.new_extension(host.base_weights(model), LONG)
    begun = time.monotonic()

    def on_step(progress: Any) -> None:
        if progress.step % 25 == 0:
            _say("extension", progress.step, progress.losses, begun)

    losses: list[float] = []
    rounds = []
    for turn, (steps, learning_rate, learns_from, sigma_min, accumulate) in enumerate(course.extension):
        run, videos = FOLDER / f"extension_{number}_{turn}", _videos(learns_from)
        encoded(videos, CACHE, clip_vision, vae)
        settings = post_tuning.Recipe(
            steps, learning_rate, course.seed + turn, average=0.95, save_every=100, sigma_min=sigma_min,
            accumulate=accumulate,
        )  # fmt: skip
        with quick_group_norms():
            learned, more = host.post_tune(
                model, learned, clip_vision, vae, videos, (SIDE, SIDE), settings, run, on_step=on_step
            )
        losses += more
        rounds.append(learned.tensors)
    averaged = [rounds[turn] for turn in course.averaged]
    mean = {key: torch.stack([each[key] for each in averaged]).mean(0) for key in learned.tensors}
    learned = replace(learned, tensors=mean)
    extension.write_extension(learned, path, metadata={**_NOTES, "rounds": str(number + 1)})
    core("post_tuning.curve").loss_curve(losses).save(path.with_suffix(".png"))


def _videos(of: Scenes) -> Path:
    """A folder with the videos of a round."""
    folder = videos_of(FOLDER, of.pace, of.first)
    write_videos(folder, of.amount, of.pace, of.first)
    return folder


def _kept(stage: str, train: Callable[[Report], dict[str, torch.Tensor]], turn: int = 0) -> dict[str, torch.Tensor]:
    """The tensors of a stage after a round (or a later one): as kept, or trained now and kept."""
    files, path = core("files"), KEPT / f"{stage}.safetensors"
    if _done(path) <= turn:
        losses: list[float] = []
        begun = time.monotonic()

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            if step % 50 == 49:
                _say(stage, step + 1, losses, begun)

        with quick_group_norms():
            tensors = train(report)
        notes = {**_NOTES, "seconds": f"{time.monotonic() - begun:.0f}", "rounds": str(turn + 1)}
        files.save_tensors(path, {key: tensor.half() for key, tensor in tensors.items()}, notes)
        core("post_tuning.curve").loss_curve(losses).save(path.with_suffix(".png"))
    with files.open_tensors(path, "Remove it.") as (file, shapes):
        return {key: file.get_tensor(key).float() for key in shapes}


def _done(path: Path) -> int:
    """Rounds of a stage that are in its file, or courses of the extension."""
    if not path.exists():
        return 0
    with core("files").open_tensors(path, "Remove it.") as (file, _):
        return int((file.metadata() or {}).get("rounds", 1))


def _say(stage: str, step: int, losses: list[float], begun: float) -> None:
    recent = losses[-50:]
    mean = sum(recent) / len(recent)
    print(f"{stage}: step {step}, loss {mean:.4g}, {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
