"""Several processes, by Hugging Face's accelerate: how they are spread over devices is said to `accelerate launch`.

With DeepSpeed they are in `zero.py`.
"""

from __future__ import annotations

import importlib
import inspect
import os
from typing import Any

import torch

from ..types import ExVideoError
from .engine import Engine, Parameters


def imported(library: str) -> Any:
    """A library that only several devices need.

    Raises:
        ExVideoError: it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ExVideoError(
            f"Post-tuning on several devices in this way needs {library}: install it into the Python of ComfyUI "
            f"(pip install {library})."
        ) from error


class Accelerated(Engine):
    """The processes that `accelerate launch` started. Each learns from clips of its own; their gradients are averaged.

    Raises:
        ExVideoError: accelerate is not installed, or does not bring the processes together.
    """

    def __init__(self) -> None:
        accelerate = imported("accelerate")
        # What precision a pass has, and how many losses a step, our own recipe decides, as on one device, and not what
        # `accelerate config` once asked about other programs.
        self._accelerator = accelerate.Accelerator(mixed_precision="no", **self.told(accelerate))
        self.rank, self.processes = self._accelerator.process_index, self._accelerator.num_processes
        # Each would learn alone, from the same clips, and write over what the others write.
        if self.processes != (started := int(os.environ.get("WORLD_SIZE", self.processes))):
            raise ExVideoError(
                f"{started} processes were started, and accelerate has {self.processes} here: it does not spread "
                "training over devices of this kind. Start one process, or let ACCELERATE_USE_CPU=true name the CPU."
            )

    def told(self, accelerate: Any) -> dict[str, Any]:
        """What accelerate is told beside the flags of `accelerate launch`."""
        # Queries and keys for a single token have no gradient at all.
        handlers = [accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)]
        # Of torchrun's processes on the CPU each would think that it is the only one.
        devices = getattr(torch, "accelerator", torch.cuda)  # of all kinds, since torch 2.6
        return {"kwargs_handlers": handlers, "cpu": not devices.is_available()}

    def placed(self, denoise: Any, parameters: Parameters) -> tuple[Any, Parameters]:
        return self._accelerator.prepare(denoise), parameters

    def mean(self, value: float) -> float:
        device = self._accelerator.device
        return float(self._accelerator.reduce(torch.tensor(value, device=device), "mean"))


class Sharded(Accelerated):
    """The same, with parameters, gradients and moments spread over the devices, by torch's fully sharded data parallel.

    During a step each device has all parameters, but keeps a part of the rest only: what DeepSpeed calls ZeRO, stage 2.

    Raises:
        ExVideoError: torch is too old for it.
    """

    spread = True

    def placed(self, denoise: Any, parameters: Parameters) -> tuple[Any, Parameters]:
        try:  # here, because not every torch has these
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard
        except ImportError as error:
            raise self._too_old() from error
        if "ignored_params" not in inspect.signature(fully_shard).parameters:
            raise self._too_old()
        mesh = init_device_mesh(self._accelerator.device.type, (self.processes,))
        names = {id(parameter): name for name, parameter in denoise.named_parameters()}
        frozen = {parameter for parameter in denoise.parameters() if not parameter.requires_grad}
        fully_shard(denoise, mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
        parts = dict(denoise.named_parameters())
        return denoise, {key: parts[names[id(parameter)]] for key, parameter in parameters.items()}

    def _too_old(self) -> ExVideoError:
        return ExVideoError(f"--shard needs torch 2.7 or newer, this is {torch.__version__}.")

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        full: torch.Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
        return full.cpu()

    def part(self, tensor: torch.Tensor, parameter: Any) -> torch.Tensor:
        from torch.distributed.tensor import distribute_tensor

        here, mesh = super().part(tensor, parameter), parameter.device_mesh
        return distribute_tensor(here, mesh, parameter.placements, src_data_rank=None)
