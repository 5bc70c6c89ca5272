"""What is finished of a long run on disk, to go on from after a crash, a kill or a cancel."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors
import torch

from .files import checksum, open_tensors, require_writable, save_tensors, whole_or_nothing
from .plan import Segment
from .types import ExVideoError, LatentShape

# Not as models are called: the folder is among those that the host looks for extensions in.
SUFFIX = ".latents"
PLAN, STEP = "run.json", f"step{SUFFIX}"

log = logging.getLogger(__name__)


class RunStore:
    """The segments of one run, or its last step, in a folder of their own.

    Each file tells which run and which part of it it holds. One that is torn, or holds something else, is logged and
    taken for missing.

    Args:
        folder: it is made where it is missing.
        settings: all that decides the outcome, as JSON has it. A folder that holds parts of a run of others is refused.
        shape: of the latents of the whole clip.
        steps: how many a sampling has.

    Raises:
        ExVideoError: a folder that holds another run, or something else, or that a run cannot be begun in.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], shape: LatentShape, steps: int):
        self._folder, self._shape, self._steps = folder, shape, steps
        plan = folder / PLAN
        settings = json.loads(json.dumps(settings))
        with _told_if_unwritable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            others = [path for path in folder.iterdir() if path != plan and not path.name.startswith(".")]
            begun = _settings_in(plan) if plan.exists() else None
            # A first try that came to nothing, by a wrong input or a cancel, binds nobody.
            if begun is not None and (others or begun == settings):
                self._compare(begun, settings)
                # Of what is written there: 1 and 1.0 are the same setting and not the same text.
                self._run = _identity(begun)
                return
            if others:
                raise ExVideoError(
                    f"{folder} should hold a long run or nothing, but it holds other files: choose another "
                    "checkpoint_name, or empty it."
                )
            with whole_or_nothing(plan) as partial:
                partial.write_text(json.dumps(settings, indent=1), encoding="utf-8")
            self._run = _identity(settings)

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        differs = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if differs:
            told = ", ".join(_changed(key, before.get(key), now.get(key)) for key in differs[:4])
            raise ExVideoError(
                f"The run in {self._folder} was begun with other settings: {told}. Set them back to go on with it, or "
                "choose another checkpoint_name for a new run."
            )

    def load(self, segment: Segment) -> torch.Tensor | None:
        """The new frames of a segment, if they are there and whole.

        Raises:
            ExVideoError: they are not, and cannot be kept when they are made.
        """
        expected = {key: [text] for key, text in _texts_of(segment).items()}
        found = self._load(_file_of(segment), segment.new.frames, expected)
        if found is not None:
            return found[0]
        # Sampling takes long, and would be lost. A run that is finished may be looked at wherever it lies.
        self._require_writable(segment.new.frames)
        return None

    def save(self, segment: Segment, latents: torch.Tensor) -> None:
        """Keep the new frames of a segment; where the disk has no more room, the log tells, and they are not lost."""
        self._save(_file_of(segment), latents, _texts_of(segment))

    def load_step(self) -> tuple[int, torch.Tensor] | None:
        """The last step that was begun, and the noised latents at its beginning, if they are there and whole.

        Raises:
            ExVideoError: this step and those after it cannot be kept.
        """
        self._require_writable(self._shape.frames)
        steps = [self._text_of(step) for step in range(self._steps)]
        found = self._load(STEP, self._shape.frames, {"step": steps})
        return None if found is None else (steps.index(found[1]["step"]), found[0])

    def save_step(self, step: int, latents: torch.Tensor) -> None:
        """Keep the noised latents at the beginning of a step, in the place of the step before; but none that are not
        finite, from which nothing can be gone on with."""
        if latents.isfinite().all():
            self._save(STEP, latents, {"step": self._text_of(step)})

    def _text_of(self, step: int) -> str:
        return f"{step} of {self._steps}"

    def _load(
        self, name: str, frames: int, expected: Mapping[str, Sequence[str]]
    ) -> tuple[torch.Tensor, Mapping[str, str]] | None:
        """Latents and texts of a file, if it holds so many frames and says one of what is expected of each text."""
        path = self._folder / name
        if path.exists():
            try:
                with open_tensors(path, "") as (file, _):
                    # Copied: they live on while the next step takes the file's place, and Windows refuses that to
                    # whatever is mapped.
                    latents, texts = file.get_tensor("latents").clone(), file.metadata()
                    problem = "" if texts["sha256"] == checksum(latents) else "is damaged (its checksum is wrong)"
                problem = problem or self._foreign(latents, texts, frames, expected)
                if not problem:
                    return latents, texts
            except (ExVideoError, safetensors.SafetensorError, KeyError, TypeError) as error:
                problem = f"is damaged ({error})"
            log.warning("ExVideo makes again what was in %s, for it %s.", path, problem)
        return None

    def _require_writable(self, frames: int) -> None:
        numbers = math.prod(self._shape._replace(frames=frames))
        with _told_if_unwritable(self._folder):
            require_writable(self._folder, numbers * torch.float32.itemsize)

    def _foreign(
        self, latents: torch.Tensor, texts: Mapping[str, str], frames: int, expected: Mapping[str, Sequence[str]]
    ) -> str:
        """Why a file that is whole is not the one looked for; nothing where it is."""
        if texts.get("run") != self._run:
            return "is of another run" if "run" in texts else "does not say which run it is of"
        for key, allowed in expected.items():
            if texts.get(key) not in allowed:
                return f"is another part (it says {key} {texts.get(key)})"
        shape = self._shape._replace(frames=frames)
        if tuple(latents.shape) != shape:
            return f"is of another shape ({list(latents.shape)}, and should be {list(shape)})"
        if not latents.isfinite().all():
            return "holds numbers that are not finite (NaN)"
        return ""

    def _save(self, name: str, latents: torch.Tensor, texts: Mapping[str, str]) -> None:
        texts = {"sha256": checksum(latents), "run": self._run, **texts}
        try:
            save_tensors(self._folder / name, {"latents": latents}, texts)
        except ExVideoError as error:  # there was room when it was begun; what is sampled is worth more
            log.warning("ExVideo goes on without keeping this part of the run: %s", error)


@contextmanager
def _told_if_unwritable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExVideoError(
            f"A long run cannot be kept in {folder} ({error}): make it writable, free some space, or choose another "
            "checkpoint_name."
        ) from error


def _changed(key: str, before: Any, now: Any) -> str:
    """What to tell of a setting; the checksums of pictures and models would tell nobody anything."""
    sums = any(isinstance(value, str) and re.search("[0-9a-f]{16}", value) for value in (before, now))
    return f"{key} was another" if sums else f"{key} was {before} and is {now}"


def _identity(settings: Mapping[str, Any]) -> str:
    """A text that differs between runs of other settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _settings_in(plan: Path) -> dict[str, Any]:
    with suppress(ValueError):  # no text, or no JSON
        found = json.loads(plan.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    raise ExVideoError(
        f"{plan} should hold the settings of a long run, but it is damaged, so nobody can tell what was begun there: "
        "choose another checkpoint_name, or remove that folder."
    )


def _file_of(segment: Segment) -> str:
    return f"segment_{segment.number:05}{SUFFIX}"


def _texts_of(segment: Segment) -> dict[str, str]:
    return {"segment": str(segment.number), "frames": f"{segment.new.start} to {segment.new.stop - 1}"}
