"""What each part of the extension is worth: post-tuned without it, for as many steps as with it.

python -m dev.tiny.ablated --steps 300
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from dev.environment import ROOT
from dev.inside import become_host, core
from dev.tiny.autoencoder import SIDE
from dev.tiny.data import FPS, HELD_OUT, LONG, PLAIN, videos_of
from dev.tiny.quality import by_parts, quality
from dev.tiny.reproduce import MODELS, PARTS
from dev.tiny.scenes import scene
from dev.tiny.trained import write_trained_model
from dev.tiny.ways import Studio

FOLDER = ROOT / ".host" / "tiny"
FROZEN: dict[str, Sequence[str]] = {
    "all is trained": (),
    "the convolution stays the identity": ("positional_conv.",),
    "the table stays the bounced sinusoid": ("positional_embedding.",),
    "attention over frames stays the base's": ("attn1.", "norm1."),
}
"""What is held fixed: parts of the tensors' names."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.tiny.ablated")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--scenes", type=int, default=6, help="held-out scenes to measure on")
    arguments = parser.parse_args()
    become_host("--cpu")
    write_trained_model(MODELS)
    scenes = [scene(HELD_OUT + number) for number in range(arguments.scenes)]
    print("PSNR in dB; place: error of the shape's place in % of a side; each by frames.")
    cells = ["after so many steps", *(f"{measure}, {part}" for measure in ("PSNR", "place") for part in PARTS)]
    print("| " + " | ".join(cells) + " |\n|" + "---|" * len(cells))
    for name, frozen in FROZEN.items():
        path = FOLDER / "ablated" / f"{name}, {arguments.steps}.safetensors"
        if not path.exists():
            core("extension").write_extension(_trained(frozen, arguments.steps, arguments.learning_rate), path)
        with torch.inference_mode():
            studio = Studio(MODELS, path)
            found = [quality(studio.extended(what, SIDE), what) for what in scenes]
        row = [f"{arguments.steps}: {name}"]
        for measure, scale in (("psnr", 1), ("place", 100)):
            mean = torch.stack([getattr(each, measure) for each in found]).mean(0)
            row += [f"{scale * value:.1f}" for value in by_parts(mean, PARTS).values()]
        print("| " + " | ".join(row) + " |", flush=True)


def _trained(frozen: Sequence[str], steps: int, learning_rate: float) -> Any:
    """An extension post-tuned from the base, but for some parts, on the scenes that `make train-tiny` encoded."""
    extension, host, learning = core("extension"), core("host"), core("host.learning")
    training, cache, tiny = core("post_tuning.training"), core("post_tuning.cache"), core("tiny")
    model, clip_vision, vae = host.load_svd(MODELS / tiny.CHECKPOINT)
    start = extension.new_extension(host.base_weights(model), LONG)
    shape = core("types").ClipShape(LONG, SIDE, SIDE)
    encoder = learning.Encoder(clip_vision, vae)
    clips = cache.cache_clips(videos_of(FOLDER, None, PLAIN), shape, FPS, encoder, FOLDER / "post_tuning_cache")
    recipe = core("post_tuning.recipe").Recipe(steps, learning_rate, average=0.95, scale=learning.latent_scale(model))
    with learning.trainable(model, start, None) as (denoise, parameters):
        held = {key for key in parameters if any(part in key for part in frozen)}
        for key in held:
            parameters[key].requires_grad_(False)
        some = {key: parameter for key, parameter in parameters.items() if key not in held}
        learned = training.Training(denoise, some, start, clips, recipe).run()
    return type(start)({**start.tensors, **learned.tensors}, LONG)


if __name__ == "__main__":
    main()
