"""The training loop: AdamW on the 528 tensors of an extension, their running average, checkpoints to go on from."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..extension import Extension
from ..files import fingerprint, open_tensors, save_tensors
from ..types import ExVideoError
from .cache import Clip, Clips
from .engine import MOMENTS, Engine, Parameters
from .interrupts import uninterrupted
from .objective import Draw, draw, loss, noise_like
from .recipe import Recipe

STATE, EXTENSION = "training.state", "extension.safetensors"
"""What a run keeps. The state is a .safetensors file, under a name that no list of models shows."""
_BEFORE = ".before"
"""In the names of state and extension of another run that was in the folder before."""
_WORDS = {
    "clips": "the clips (their size, and names, places and dates of the videos)",
    "start": "the extension to start from",
    "base": "the base",
    "processes": "the number of processes",
    "length": "the length of its extension",
}
"""Settings by other names than the person gave them."""

log = logging.getLogger(__name__)

Denoise = Callable[..., torch.Tensor]


class DivergedError(ExVideoError):
    """Loss or gradient is no longer a number, in all processes at once."""


def check_start(start: Extension, folder: Path) -> None:
    """Raise ExVideoError if a run in this folder would replace the very file that it starts from.

    Stopped, it could not go on: where it began would be gone, and with it what the run before had learned.
    """
    for kept in (folder / EXTENSION, _before(folder / EXTENSION)):
        with suppress(OSError):  # one of them is not there
            if start.file and start.file.samefile(kept):
                raise ExVideoError(
                    f"Post-tuning in {folder} would replace {kept.name} there, which it is to start from: choose "
                    "another run_name or --output, and that file stays as it is."
                )


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: steps done.
        losses: of each.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)


class Training:
    """A training that can be stopped after any step, kept, and gone on with to the same numbers.

    Attributes:
        progress: how far it is.
        whole: whether parameters, moments, averages and the count of steps are all of the same step. They are not
            where an exception came while a step was taken.
        together: whether all processes have ended in the same way, so that each brings its part of what is kept.

    Args:
        denoise: as `host.Denoiser`; differentiable.
        parameters: what is trained, float32, by names in an extension file.
        start: the extension that they started from.
        clips: to learn from.
        recipe: how.
        folder: where the state is kept; None keeps none.
        engine: what it runs on.
        base: the identity of the model that `denoise` is.
    """

    def __init__(
        self,
        denoise: Denoise,
        parameters: Parameters,
        start: Extension,
        clips: Clips,
        recipe: Recipe,
        folder: Path | None = None,
        engine: Engine | None = None,
        base: str = "",
    ):
        self._start, self._clips, self._base = start, clips, base
        self._recipe, self._folder, self._engine = recipe, folder, engine or Engine()
        # In main memory: as large as the parameters, and seldom needed.
        self._average = {key: parameter.detach().cpu().clone() for key, parameter in parameters.items()}
        self._denoise, self._parameters = self._engine.prepare(denoise, parameters, recipe)
        self._begun_from = fingerprint(start.tensors)
        self._over_another = self._from_before = False
        self.progress, self.whole, self.together = Progress(), True, False

    def run(self, on_step: Callable[[Progress], None] = lambda progress: None) -> Extension:
        """Train to the last step of the recipe.

        Whatever ends it before, what was learned is kept in the folder; of a step that was half taken, nothing is, and
        the state of the last checkpoint stays.

        Args:
            on_step: called after each step; may raise to stop.

        Raises:
            ExVideoError: the loss is no longer a number. What was learned before is kept in the folder.
        """
        recipe, progress = self._recipe, self.progress
        # A process that fails alone must not wait for the parts of the others.
        self.together = not self._engine.spread
        try:
            while progress.step < recipe.steps:
                self._step(progress.step)
                on_step(progress)
                if progress.step % recipe.save_every == 0 and progress.step < recipe.steps:
                    self._try_to_save()
            self.together = True
        except DivergedError:
            self.together = True
            raise
        finally:
            if self.together:
                self._try_to_save()
        return self.extension()

    def extension(self) -> Extension:
        """What has been learned: the running average, once there is one of several."""
        averaged = self.progress.step >= 2 * self._recipe.average_every
        value = self._engine.value
        tensors = self._average if averaged else {k: value(p).cpu().clone() for k, p in self._parameters.items()}
        texts = {"training": json.dumps({**asdict(self._recipe), "steps": self.progress.step})}
        return Extension(dict(tensors), self._start.num_frames, {**self._start.metadata, **texts})

    def _step(self, step: int) -> None:
        recipe, engine, total = self._recipe, self._engine, 0.0
        for turn in range(recipe.accumulate):
            number = (step * recipe.accumulate + turn) * engine.processes + engine.rank
            chance = draw(recipe.seed, number, len(self._clips), recipe.sigma_min)
            clip = self._clips[chance.clip]
            value = self._loss(clip, chance) / recipe.accumulate
            # Of all processes, so that they stop together.
            total += engine.mean(float(value.detach()))
            if not math.isfinite(total):
                raise self._diverged(step, "loss", f", here on a clip of {clip.video}")
            engine.backward(value)
        # What takes longest is waited for in here, so Ctrl-C most often comes then, and would lose all since the last
        # checkpoint.
        with uninterrupted():
            self.whole = False
            # In half precision it is not finite now and then, which a smaller scale mends.
            taken = math.isfinite(engine.step()) or engine.scaled
            if taken:
                self.progress.losses.append(total)
                self.progress.step += 1
                if self.progress.step % recipe.average_every == 0:
                    self._take_in()
            self.whole = True
        if not taken:
            raise self._diverged(step, "gradient")

    def _diverged(self, step: int, what: str, where: str = "") -> DivergedError:
        kept = f"what was learned before is in {self._folder}, and stays there"
        advice = f" Choose another run_name or --output as well: {kept}." if self._folder and step else ""
        return DivergedError(
            f"Post-tuning stopped at step {step + 1}: its {what} is no longer a number{where}. Lower the learning "
            f"rate, or look for a damaged video.{advice}"
        )

    def _loss(self, clip: Clip, chance: Draw) -> torch.Tensor:
        recipe = self._recipe
        device = next(iter(self._parameters.values())).device
        latents = recipe.scale * clip.latents.to(device)
        noised = latents + chance.sigma * noise_like(latents, chance.seed)
        ids = {"fps": recipe.fps, "motion_bucket_id": clip.motion_bucket_id, "augmentation_level": 0.0}
        sigma = torch.tensor([chance.sigma], device=device)
        denoised = self._denoise(noised, sigma, clip.latents[:1].to(device), clip.token.to(device), [ids])
        return loss(denoised, latents, chance.sigma, recipe.contrast)

    def _take_in(self) -> None:
        times = self.progress.step // self._recipe.average_every
        # As an average of few, as long as there are few, or it would stay near where training began.
        stays = min(self._recipe.average, (times - 1) / (times + 1))
        for key, parameter in self._parameters.items():
            self._average[key].lerp_(self._engine.value(parameter).cpu(), 1 - stays)

    def _try_to_save(self) -> None:
        """Keep the state; where that fails, of a full disk, say, the training goes on and the state before it stays."""
        if self._folder is None or not self.progress.step or not self.whole:
            return
        try:
            self.save()
        except ExVideoError as error:
            log.warning("ExVideo post-tuning at step %d could not be kept: %s", self.progress.step, error)

    def save(self) -> None:
        """Write the state into the folder, whole or not at all; of several processes the first writes."""
        assert self._folder is not None
        tensors = {f"average.{key}": tensor for key, tensor in self._average.items()}
        for key, parameter in self._parameters.items():
            tensors[f"parameter.{key}"] = self._engine.value(parameter)
            tensors |= {f"{name}.{key}": moment for name, moment in self._engine.moments(parameter).items()}
        if self._engine.rank:
            return
        texts = {"step": str(self.progress.step), "losses": json.dumps(self.progress.losses)}
        texts |= {"taken": str(self._engine.taken()), "scaler": json.dumps(self._engine.scaling())}
        texts |= {"recipe": json.dumps(self._settings())}
        self.set_aside()
        save_tensors(self._folder / STATE, tensors, texts)

    def load(self) -> bool:
        """Go on from the state in the folder, where there is one of the same settings; says whether there was.

        That may be the one that another run has set aside. What is of other settings gets another name when there is
        something of this run to take its place.

        Raises:
            ExVideoError: a state that cannot be read, or processes that do not find the same one.
        """
        if self._folder is None:
            return False
        other = self._take_up()
        # The first keeps the run for all; others with a disk of their own would train something else beside it.
        if self._engine.mean(float(self.progress.step)) != self.progress.step:
            raise ExVideoError(
                "The processes of this post-tuning find different runs to go on with: give all of them the same "
                "--output and --videos, on a disk that all can see."
            )
        if other is None:
            return True
        if other or (self._folder / EXTENSION).is_file():
            self._begin_over(other)
        return False

    def _take_up(self) -> list[str] | None:
        """Go on from a state of the same settings; else what it is that differs, where there is one at all."""
        assert self._folder is not None
        state, before = self._folder / STATE, _before(self._folder / STATE)
        other: list[str] = []
        if state.exists() and not (other := self._read(state)):
            return None
        with suppress(ExVideoError):  # nobody asked for that one
            if before.exists() and not self._read(before):
                self._over_another = self._from_before = True
                return None
        return other

    def _read(self, path: Path) -> list[str]:
        """Go on from a state, unless it is of other settings: which these are."""
        with open_tensors(path, "Remove it to begin anew.") as (file, shapes):
            texts = file.metadata() or {}
            if "recipe" not in texts:
                raise ExVideoError(f"{path} is no state of a post-tuning: remove it to begin anew.")
            settings = self._settings()
            # What a state of an older version does not know, it does not deny.
            other = [name for name, was in json.loads(texts["recipe"]).items() if settings.get(name) != was]
            if not all(shapes.get(f"parameter.{key}") == p.shape for key, p in self._parameters.items()):
                other.append("length")
            if other:
                return other
            step = int(texts["step"])
            for key, parameter in self._parameters.items():
                there = [name for name in MOMENTS if f"{name}.{key}" in shapes]
                moments = {name: file.get_tensor(f"{name}.{key}") for name in there}
                value = file.get_tensor(f"parameter.{key}")
                self._engine.go_on(parameter, value, moments, int(texts.get("taken", step)))
                self._average[key].copy_(file.get_tensor(f"average.{key}"))
            self._engine.scale_as(json.loads(texts["scaler"]))
            self.progress = Progress(step, json.loads(texts["losses"]))
        return []

    def _begin_over(self, other: list[str]) -> None:
        assert self._folder is not None
        self._over_another = True
        if not self._engine.rank:
            differs = ", ".join(_WORDS.get(name, name) for name in other)
            log.warning(
                "ExVideo post-tuning begins anew: the run in %s %s. %s.",
                self._folder,
                f"is of other settings: {differs}" if other else f"has no {STATE} to go on from",
                self._fate_of_the_other(),
            )

    def _fate_of_the_other(self) -> str:
        """What becomes of what another run left in the folder."""
        assert self._folder is not None
        paths = [self._folder / name for name in (STATE, EXTENSION)]
        names = " and ".join(_before(path).name for path in paths)
        if not self._one_before_is_longer():
            taken = any(_before(path).exists() for path in paths)
            return f"It will stay there as {names}" + (", in the place of the one before it" if taken else "")
        if paths[0].exists():
            return f"It will be replaced, for it has fewer steps than the one before it, which stays as {names}"
        return f"It will stay there as {_free_before(paths[1]).name}"

    def _one_before_is_longer(self) -> bool:
        assert self._folder is not None
        state = self._folder / STATE
        return _steps(_before(state)) > _steps(state)

    def set_aside(self) -> None:
        """Give another name to what another run left in the folder, before anything of this one takes its place.

        Of one run only, for a state is large: of the longer one. Where this run was the one set aside, the two change
        their names.
        """
        if self._folder is None or not self._over_another:
            return
        state, extension = self._folder / STATE, self._folder / EXTENSION
        if not self._from_before and self._one_before_is_longer():
            if not state.exists():  # whoever removed it means to keep what was learned
                with suppress(OSError):
                    extension.replace(_free_before(extension))
            self._over_another = False
            return
        for path in (state, extension):
            before, between = _before(path), path.with_name(f".{path.name}.part")
            with suppress(OSError):  # none, or in use: then it is replaced as a whole
                path.replace(between if self._from_before else before)
            if self._from_before:
                # In this order: whatever stops it in between, this run's own has one of its two names.
                with suppress(OSError):
                    before.replace(path)
                with suppress(OSError):
                    between.replace(before)
        self._over_another = self._from_before = False

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a run to go on: all but how long it is and how often it is kept."""
        settings: dict[str, Any] = asdict(self._recipe)
        for free in ("steps", "save_every"):
            settings.pop(free)
        settings |= {"clips": self._clips.identity, "start": self._begun_from, "base": self._base}
        return {**settings, "processes": self._engine.processes}


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}{_BEFORE}{path.suffix}")


def _free_before(path: Path) -> Path:
    names = (path.with_name(f"{path.stem}{_BEFORE}{number}{path.suffix}") for number in itertools.count(2))
    return next(name for name in names if not name.exists())


def _steps(state: Path) -> int:
    """Steps of the run that a state is of; 0 where there is none that can be read."""
    with suppress(ExVideoError, ValueError), open_tensors(state, "") as (file, _):
        return int((file.metadata() or {}).get("step", 0))
    return 0
