"""Post-tuning from the command line, with ComfyUI's own classes but without its server.

    python -m exvideo_core.post_tuning --checkpoint PATH --videos FOLDER --output FOLDER --steps 1000
    accelerate launch -m exvideo_core.post_tuning …       on several devices; torchrun does, too
    … --shard                                             with what is learned spread over them, for less memory on each

Run in this pack's folder. A run that was stopped goes on when it is started again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch

from ..budget import BUDGETS
from ..extension import new_extension, read_extension
from ..standalone import start_host
from ..types import ExVideoError
from .engine import Engine
from .many import Accelerated, Sharded
from .recipe import Recipe
from .training import Progress
from .zero import Zero

KEPT = "folder to keep the run and its extension in; encoded clips are kept beside it, in post_tuning_cache"

log = logging.getLogger(__package__)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m exvideo_core.post_tuning",
        description="Train an ExVideo extension on a folder of videos.",
        epilog="What follows -- goes to ComfyUI, such as --cpu or --lowvram.",
    )
    parser.add_argument("--checkpoint", type=_path, required=True, help="SVD, such as svd_xt.safetensors")
    parser.add_argument("--videos", type=_path, required=True, help="folder with the videos to learn from")
    parser.add_argument("--output", type=_path, required=True, help=KEPT)
    parser.add_argument("--extension", type=_path, help="where training starts; a new extension by default")
    parser.add_argument("--frames", type=int, default=0, help="of the clips; 128, or as the extension has, by default")
    parser.add_argument("--size", default="512x512", help="of the clips, width x height in pixels")
    parser.add_argument("--memory", choices=list(BUDGETS), default="auto", help="working memory; auto by default")
    parser.add_argument("--shard", action="store_true", help="several devices share parameters, gradients and moments")
    kinds = get_type_hints(Recipe)
    for option in _options():
        how: dict[str, Any] = {"required": True} if option.default is MISSING else {"default": option.default}
        by_default = "" if option.default is MISSING else f"; {option.default:g} by default"
        meaning = f"{option.metadata['help']}{by_default}"
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=kinds[option.name], help=meaning, **how)
    return parser


def _options() -> list[Field[Any]]:
    """What can be set of a recipe; the scale is the model's."""
    return [option for option in fields(Recipe) if option.name != "scale"]


def main() -> None:
    """Train; ends with status 1 and a sentence where that cannot be done, with 130 after Ctrl-C."""
    logging.basicConfig(format="%(message)s")
    # Ours, whatever they are called here, not all that the host says.
    logging.getLogger(__package__.rpartition(".")[0]).setLevel(logging.INFO)
    words = sys.argv[1:]
    ours = words.index("--") if "--" in words else len(words)
    options = arguments().parse_args(words[:ours])
    try:
        # What is told at once, before the host and a checkpoint are waited for.
        size, recipe = _size(options.size), _recipe(options)
        # Before the host looks for its device: each of several processes has one of its own.
        engine = _engine(options.shard)
        start_host(words[ours + 1 :])
        _train(options, size, recipe, engine)
    except ExVideoError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. The same command goes on from where the run was last kept, if it was.\n")
        sys.exit(130)


def _engine(shard: bool) -> Engine:
    # `accelerate launch --use_fsdp` asks for the same, and hands it on so. Taken from accelerate itself, whose own way
    # would spread the frozen weights, too, and needs GPUs.
    shard = os.environ.pop("ACCELERATE_USE_FSDP", "") == "true" or shard
    if "WORLD_SIZE" in os.environ:
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            return Zero()
        return Sharded() if shard else Accelerated()
    if shard:
        raise ExVideoError("--shard spreads training over several devices: start it by accelerate launch or torchrun.")
    return Engine()


def _train(options: argparse.Namespace, size: tuple[int, int], recipe: Recipe, engine: Engine) -> None:
    from .. import host

    model, clip_vision, vae = host.load_svd(options.checkpoint)
    if options.extension:
        extension = read_extension(options.extension)
    else:
        extension = new_extension(host.base_weights(model), options.frames or 128)
    show = _shower(options.steps) if not engine.rank else (lambda progress: None)
    host.post_tune(
        model, extension, clip_vision, vae, options.videos, size, recipe, options.output,
        options.frames, options.memory, engine, on_step=show, must_keep=True,
    )  # fmt: skip
    if not engine.rank:
        log.info("The extension is %s.", options.output / "extension.safetensors")


def _path(text: str) -> Path:
    # As of a variable that is not set: it would be the folder that one happens to be in.
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


def _recipe(options: argparse.Namespace) -> Recipe:
    return Recipe(**{option.name: getattr(options, option.name) for option in _options()})


def _size(text: str) -> tuple[int, int]:
    """Height and width."""
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) != 2 or not all(side.strip().isdecimal() for side in sides):
        raise ExVideoError(f"A size is width x height in pixels, such as 512x512; got {text}.")
    return int(sides[1]), int(sides[0])


def _shower(steps: int) -> Any:
    every = max(steps // 100, 1)

    def show(progress: Progress) -> None:
        if progress.step % every == 0 or progress.step == steps:
            recent = torch.tensor(progress.losses[-every:]).mean()
            log.info("step %d of %d, loss %.4g", progress.step, steps, recent)

    return show


if __name__ == "__main__":
    main()
