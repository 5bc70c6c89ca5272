"""What is finished of a long run on disk, to go on from after a crash, a kill or a cancel."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import torch

from .files import checksum, open_tensors, save_tensors, whole_or_nothing
from .plan import Segment
from .types import ExVideoError

# Not as models are called: the folder is among those that the host looks for extensions in.
SUFFIX = ".latents"
PLAN, STEP = "run.json", f"step{SUFFIX}"

log = logging.getLogger(__name__)


class RunStore:
    """The segments of one run, or its last step, in a folder of their own.

    Args:
        folder: it is made where it is missing.
        settings: all that decides the outcome, as JSON has it. A folder that holds a run of others is refused.

    Raises:
        ExVideoError: a folder that holds another run, or something else, or cannot be written to.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self._folder = folder
        plan = folder / PLAN
        settings = json.loads(json.dumps(settings))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if plan.exists():
                self._compare(_settings_in(plan), settings)
                return
            if any(path for path in folder.iterdir() if not path.name.startswith(".")):
                raise ExVideoError(
                    f"{folder} should hold a long run or nothing, but it holds other files: choose another "
                    "checkpoint_name, or empty it."
                )
            with whole_or_nothing(plan) as partial:
                partial.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        except OSError as error:
            raise ExVideoError(
                f"A long run cannot be kept in {folder} ({error}): make it writable, or choose another checkpoint_name."
            ) from error

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        differs = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if differs:
            told = ", ".join(f"{key} was {before.get(key)} and is {now.get(key)}" for key in differs[:4])
            raise ExVideoError(
                f"The run in {self._folder} was begun with other settings: {told}. Set them back to go on with it, or "
                "choose another checkpoint_name for a new run."
            )

    def load(self, segment: Segment) -> torch.Tensor | None:
        """The new frames of a segment, if they are there and whole."""
        found = self._load(_file_of(segment))
        return None if found is None or len(found[0]) != segment.new.frames else found[0]

    def save(self, segment: Segment, latents: torch.Tensor) -> None:
        """Keep the new frames of a segment."""
        frames = f"{segment.new.start} to {segment.new.stop - 1}"
        self._save(_file_of(segment), latents, {"frames": frames})

    def load_step(self) -> tuple[int, torch.Tensor] | None:
        """The last step that was begun, and the noised latents at its beginning."""
        found = self._load(STEP)
        return None if found is None else (int(found[1]["step"]), found[0])

    def save_step(self, step: int, latents: torch.Tensor) -> None:
        """Keep the noised latents at the beginning of a step, in the place of the step before."""
        self._save(STEP, latents, {"step": str(step)})

    def _load(self, name: str) -> tuple[torch.Tensor, Mapping[str, str]] | None:
        path = self._folder / name
        if not path.exists():
            return None
        try:
            with open_tensors(path, "") as (file, _):
                latents, texts = file.get_tensor("latents"), file.metadata()
                if texts["sha256"] == checksum(latents):
                    return latents, texts
            problem = "its checksum is wrong"
        except (ExVideoError, safetensors.SafetensorError, KeyError, TypeError) as error:
            problem = f"{error}"
        log.warning("ExVideo makes again what was in %s, for it is damaged (%s).", path, problem)
        return None

    def _save(self, name: str, latents: torch.Tensor, texts: Mapping[str, str]) -> None:
        save_tensors(self._folder / name, {"latents": latents}, {"sha256": checksum(latents), **texts})


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
