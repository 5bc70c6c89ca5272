"""A whole post-tuning: from a model and a folder of videos to an extension, kept as it goes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..budget import training_budget
from ..extension import Extension, longer_extension, write_extension
from ..files import remove_abandoned, require_writable, whole_or_nothing
from ..lock import locked
from ..post_tuning.cache import Clips, cache_clips
from ..post_tuning.clips import video_files
from ..post_tuning.curve import loss_curve
from ..post_tuning.engine import Engine
from ..post_tuning.recipe import Recipe
from ..post_tuning.training import EXTENSION, Progress, Training, check_start
from ..types import ClipShape, ExVideoError
from .files import CACHE
from .identity import model_identity
from .learning import Encoder, computes_in_half, latent_scale, require_trainable, trainable, training_memory
from .patch import require_fit, require_svd, without_extension

CURVE = "losses.png"

log = logging.getLogger(__name__)


def post_tune(
    model: Any,
    extension: Extension,
    clip_vision: Any,
    vae: Any,
    videos: Path,
    size: tuple[int, int],
    recipe: Recipe,
    folder: Path,
    num_frames: int = 0,
    memory: str = "auto",
    engine: Engine | None = None,
    on_video: Callable[[int, int], None] = lambda done, of: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    must_keep: bool = False,
) -> tuple[Extension, list[float]]:
    """Train an extension on a folder of videos. A run of the same settings that was stopped before goes on.

    Args:
        model: SVD, MODEL of the host; as it was when this returns.
        extension: where training starts.
        clip_vision, vae: of the same checkpoint.
        videos: the folder.
        size: height and width of the clips in pixels.
        recipe: how.
        folder: where state and extension of this run are kept; the encoded clips go beside it.
        num_frames: of the clips; 0 takes as many as the extension reaches. Where there are more, it grows.
        memory: a name in `budget.BUDGETS`.
        engine: what it runs on.
        on_video, on_step: told how far it is; may raise to stop, and what was learned by then is kept.
        must_keep: whether it is an error that the files of a finished run cannot be written. Else it is logged, for
            the extension is returned all the same.

    Returns:
        The extension, and the loss of each step.

    Raises:
        ExVideoError: videos, sizes, an extension or an image encoder that do not fit, an extension to start from that
            the run would replace, a folder that nothing can be written to or that another process trains in, a loss
            that is no longer a number, processes that find different clips, or files that had to be kept and could not
            be written.
    """
    for kept in (folder, folder.parent / CACHE):
        try:
            require_writable(kept)  # before hours of training that it could not keep
        except OSError as error:
            raise ExVideoError(
                f"A training cannot be kept in {kept} ({error.strerror}): choose a folder that can be written to."
            ) from error
    require_svd(model)
    check_start(extension, folder)
    extension = longer_extension(extension, num_frames)
    shape = ClipShape.of_pixels(num_frames or extension.num_frames, *size)
    recipe = replace(recipe, scale=latent_scale(model))
    encoder = Encoder(clip_vision, vae)
    # Before hours of encoding, and before a folder is made.
    require_fit(model, extension)
    require_trainable(model)
    encoder.require_fit(model)
    video_files(videos)
    engine = engine or Engine()
    told = (
        f"Another post-tuning is running in {folder}: wait until it has ended, or choose another run_name or --output."
    )
    # Of several processes the first keeps the run.
    with nullcontext() if engine.rank else locked(folder, told):
        if not engine.rank:
            remove_abandoned(folder, 0)  # of a run that was killed; a state is large
        clips = cache_clips(videos, shape, recipe.fps, encoder, folder.parent / CACHE, on_video)
        _require_the_same(clips, engine)
        if not engine.rank:
            clip = f"{shape.frames} frames, {shape.width}×{shape.height}"
            log.info("ExVideo learns from %d clips of %s.", len(clips), clip)
        sharing = engine.processes if engine.spread else 1
        budget = training_budget(memory, *training_memory(model, extension, shape.latent, sharing))
        # Before anything is changed; an extension that is applied takes no part.
        plain = without_extension(model)
        base = model_identity(plain)
        _tell_of_patches(plain, extension)
        with trainable(model, extension, budget) as (denoise, parameters):
            engine.in_half = computes_in_half(model)
            training = Training(denoise, parameters, extension, clips, recipe, folder, engine, base)
            if training.load():
                log.info("ExVideo post-tuning goes on at step %d.", training.progress.step)
            if training.progress.step > recipe.steps:
                log.warning(
                    "ExVideo post-tuning was asked for %d steps, and the run in %s already has %d: it stays as it is. "
                    "For one of fewer, choose another run_name or --output.",
                    recipe.steps,
                    folder,
                    training.progress.step,
                )
            return _run(training, engine, folder, on_step, must_keep)


def _require_the_same(clips: Clips, engine: Engine) -> None:
    """Raise ExVideoError unless all processes have the same clips: each makes its own list."""
    # A few digits, for the mean is taken in float32 and has to be exact.
    mark = int(clips.identity[:4], 16)
    if engine.mean(float(mark)) != mark:
        raise ExVideoError(
            "The processes of this post-tuning find different clips, as where one of them could not read a video: see "
            "the log, and start it again."
        )


def _tell_of_patches(model: Any, extension: Extension) -> None:
    """LoRAs count as far as they change what stays as it is."""
    trained = {f"diffusion_model.{name}" for name, _ in extension.replaced_weights()}
    patches = [patch for key in trained & model.patches.keys() for patch in model.patches[key]]
    # Merged models scale down what they are added to, and an extension takes the place of all of that.
    if any(added != 0 and kept == 1 for added, _, kept, *_ in patches):
        log.warning(
            "ExVideo post-tuning leaves out what a LoRA changes in the layers over time, which are trained. Used with "
            "that LoRA, the extension has it on top: take it away, or expect more of its motion."
        )


def _run(
    training: Training, engine: Engine, folder: Path, on_step: Callable[[Progress], None], must_keep: bool
) -> tuple[Extension, list[float]]:
    ended = False
    try:
        training.run(on_step)
        ended = True
    finally:
        if training.together:
            result = training.extension()
            if training.progress.step and training.whole and not engine.rank:
                training.set_aside()
                _keep(result, training.progress.losses, folder, must_keep and ended)
    return result, training.progress.losses


def _keep(extension: Extension, losses: list[float], folder: Path, must: bool) -> None:
    """Write what was learned, also by a run that was stopped: then what keeps it from being written must not hide why.

    Raises:
        ExVideoError: it cannot be written, and must be.
    """
    try:
        write_extension(extension, folder / EXTENSION)
        _draw(losses, folder / CURVE)
    except ExVideoError as error:
        if must:
            raise
        log.error("What ExVideo's post-tuning learned could not be kept: %s", error)


def _draw(losses: list[float], path: Path) -> None:
    try:
        with whole_or_nothing(path) as partial:
            loss_curve(losses).save(partial, format="PNG")
    except OSError as error:
        raise ExVideoError(
            f"{path.name} could not be written ({error}): free some space, or choose another folder."
        ) from error
