"""Which models the demo uses: the real ones where somebody has them, else the tiny one of this repository."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dev.errors import DevError
from dev.sheets import MODELS

TINY_PREFIX = "exvideo_tiny"
TINY_CHECKPOINT = f"{TINY_PREFIX}_svd.safetensors"
TINY_EXTENSION = f"{TINY_PREFIX}_128f.safetensors"
REAL_CHECKPOINT, REAL_EXTENSION, PAINTER = MODELS
MODEL_SUFFIX = ".safetensors"  # the only kind the pack reads


class ModelsError(DevError):
    """There is nothing to run with."""


class Models(NamedTuple):
    """A checkpoint and an extension that fit each other, by the names that the loader offers."""

    checkpoint: str
    extension: str

    @property
    def tiny(self) -> bool:
        """Whether these are the stand-ins."""
        return Path(self.checkpoint).name.startswith(TINY_PREFIX)


def choose(checkpoints: Sequence[str], extensions: Sequence[str]) -> Models:
    """The real pair if the loader offers one, else the tiny one."""
    real = _real(checkpoints, extensions)
    if real is not None:
        return real
    if TINY_CHECKPOINT not in checkpoints or TINY_EXTENSION not in extensions:
        raise ModelsError(
            f"The loader should offer {TINY_CHECKPOINT} and {TINY_EXTENSION}, "
            f"it offers {list(checkpoints)} and {list(extensions)}: put both into the models folders."
        )
    return Models(TINY_CHECKPOINT, TINY_EXTENSION)


def has_real(*model_folders: Path) -> bool:
    """Whether a real pair stands in these folders, as far as that can be seen before the server runs."""
    checkpoints, extensions = (
        [path.name for folder in model_folders for path in (folder / kind).rglob("*") if path.is_file()]
        for kind in ("checkpoints", "exvideo")
    )
    return _real(checkpoints, extensions) is not None


def _real(checkpoints: Sequence[str], extensions: Sequence[str]) -> Models | None:
    # SVD-XT first: it is what ExVideo was trained on.
    svd = sorted(filter(_is_svd, checkpoints), key=lambda name: ("xt" not in name.lower(), name))
    exvideo = sorted(filter(_is_real, extensions))
    return Models(svd[0], exvideo[0]) if svd and exvideo else None


def _is_svd(name: str) -> bool:
    return _is_real(name) and "svd" in name.lower()


def _is_real(name: str) -> bool:
    path = Path(name.replace("\\", "/"))  # a Windows host lists subfolders its own way
    return path.suffix.lower() == MODEL_SUFFIX and not path.name.startswith(TINY_PREFIX)


def under_real_names(models: Path) -> None:
    """Put the tiny files of a models folder, also, where the shipped workflows look for the real ones."""
    for tiny, real in ((TINY_CHECKPOINT, REAL_CHECKPOINT), (TINY_EXTENSION, REAL_EXTENSION)):
        folder = models / MODELS[real][1]
        shutil.copyfile(folder / tiny, folder / real)
