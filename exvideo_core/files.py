"""Opening .safetensors files: their tensors by name and shape, before anything is loaded. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors

from .types import ExVideoError

Shapes = Mapping[str, tuple[int, ...]]


@contextmanager
def open_tensors(path: str | Path, advice: str) -> Iterator[tuple[Any, Shapes]]:
    """Open a file, memory-mapped: its handle, and the shape of every tensor in it.

    Args:
        path: the file.
        advice: what the person should do where it cannot be read.

    Raises:
        ExVideoError: the file is cut short, or something else.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())
            yield file, {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise ExVideoError(
            f"{Path(path).name} cannot be read as a .safetensors file ({error}): it is cut short or something else. "
            f"{advice}"
        ) from error
