"""What a long run needs of the host: where its segments are kept, and how it is told and stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import latent_preview
import torch

from ..types import ExVideoError
from .files import MODEL_FOLDER, RUNS, folder_in, throw_if_interrupted


def long_run_folder(name: str) -> Path:
    """The folder of a long run in the output folder.

    Raises:
        ExVideoError: a name that leads out of there.
    """
    runs = Path(folder_paths.get_output_directory(), MODEL_FOLDER, RUNS).resolve()
    folder = folder_in(runs, name)
    if runs not in folder.parents:
        raise ExVideoError(
            f"A long run is kept in a folder of its own in output/{MODEL_FOLDER}/{RUNS}, and {name!r} does not name "
            "one: choose a checkpoint_name such as holiday."
        )
    return folder


class SamplingProgress:
    """Progress over several samplings, with the host's preview of what is sampled; may be interrupted.

    Args:
        model: MODEL.
        steps: of all samplings.
        parts: in which a step is told, by `within`.
    """

    def __init__(self, model: Any, steps: int, parts: int = 1):
        self._parts, self._total = parts, steps * parts
        self._bar = comfy.utils.ProgressBar(self._total)
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def after(self, done: int) -> Callable[..., None]:
        """From the steps done before a sampling, to the host's callback of it."""

        def callback(step: int, x0: torch.Tensor, _x: torch.Tensor, _steps: int) -> None:
            throw_if_interrupted()
            preview = self._previewer.decode_latent_to_preview_image("JPEG", x0) if self._previewer else None
            self._bar.update_absolute((done + step + 1) * self._parts, self._total, preview)

        return callback

    def within(self, step: int, share: float) -> None:
        """Tell how much of a step is done, from 0 to 1."""
        throw_if_interrupted()
        self._bar.update_absolute(int((step + share) * self._parts), self._total)
