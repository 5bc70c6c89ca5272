"""Several processes, by Hugging Face's accelerate: how they are spread over devices is said to `accelerate launch`."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from ..types import ExVideoError
from .training import Engine


class Accelerated(Engine):
    """The processes that `accelerate launch` started. Each learns from clips of its own; their gradients are averaged.

    Raises:
        ExVideoError: accelerate is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            accelerate = importlib.import_module("accelerate")
        except ImportError as error:
            raise ExVideoError(
                "Post-tuning on several devices needs accelerate: install it into the Python of ComfyUI "
                "(pip install accelerate)."
            ) from error
        # Queries and keys for a single token have no gradient at all.
        unused = accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)
        self._accelerator = accelerate.Accelerator(kwargs_handlers=[unused])
        self.rank, self.processes = self._accelerator.process_index, self._accelerator.num_processes

    def prepare(self, denoise: Any, optimizer: Any) -> tuple[Any, Any]:
        return self._accelerator.prepare(denoise), optimizer

    def backward(self, value: torch.Tensor) -> None:
        self._accelerator.backward(self.scaler.scale(value))

    def mean(self, value: float) -> float:
        device = self._accelerator.device
        return float(self._accelerator.reduce(torch.tensor(value, device=device), "mean"))
