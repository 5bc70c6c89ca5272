"""What a long run needs to know of the host: which model it is that samples, and where its segments are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import latent_preview
import torch

from ..files import fingerprint
from ..types import ExVideoError
from .files import MODEL_FOLDER, throw_if_interrupted

RUNS = "runs"


def model_identity(model: Any) -> str:
    """A text that differs between models of other weights, extensions, LoRAs or strengths."""
    # Weights that are patched look different while they are loaded; their patches stand for them.
    weights = {key: tensor for key, tensor in model.model.state_dict().items() if key not in model.patches}
    parts = {f"{i} {key}": tensor for i, each in enumerate(_added(model)) for key, tensor in each.items()}
    patches = {
        f"{key} {i}": tensor for key, found in sorted(model.patches.items()) for i, tensor in enumerate(_tensors(found))
    }
    numbers = repr([(key, list(_numbers(found))) for key, found in sorted(model.patches.items())])
    digest = hashlib.sha256(numbers.encode()).hexdigest()[:16]
    return " ".join([fingerprint(weights), fingerprint(parts), fingerprint(patches), digest])


def _added(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    for part in model.get_nested_additional_models():
        yield part.model.state_dict()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "weights"):  # how the host keeps a LoRA
        yield from _tensors(value.weights)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield float(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)


def long_run_folder(name: str) -> Path:
    """The folder of a long run in the output folder.

    Raises:
        ExVideoError: a name that leads out of there.
    """
    runs = Path(folder_paths.get_output_directory(), MODEL_FOLDER, RUNS).resolve()
    folder = (runs / name).resolve()
    if runs not in folder.parents:
        raise ExVideoError(
            f"A long run is kept in a folder of its own in output/{MODEL_FOLDER}/{RUNS}, and {name!r} does not name "
            "one: choose a checkpoint_name such as holiday."
        )
    return folder


def sampling_progress(model: Any, total: int) -> Callable[[int], Callable[..., None]]:
    """Progress over several samplings: from the steps done before one, to the host's callback of it.

    Shows the host's preview of what is sampled, and may be interrupted.
    """
    bar = comfy.utils.ProgressBar(total)
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def after(done: int) -> Callable[..., None]:
        def callback(step: int, x0: torch.Tensor, _x: torch.Tensor, _steps: int) -> None:
            throw_if_interrupted()
            preview = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None
            bar.update_absolute(done + step + 1, total, preview)

        return callback

    return after
