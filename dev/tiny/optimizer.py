"""What all stages of the tiny model learn with: Muon for matrices and kernels, AdamW for the rest, over a cosine."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

WARM_UP = 20
"""Steps until the learning rate is reached."""


class Optimizer:
    """Muon where there are directions to even out (Jordan et al. 2024), which learns a stage in about half the steps.

    Args:
        parameters: with their gradients on them when `step` is called.
        steps: in all.
        learning_rate: at most, of AdamW; Muon's is `MUON` times that, on the same scale.
    """

    MUON = 2.5

    def __init__(self, parameters: Iterable[nn.Parameter], steps: int, learning_rate: float):
        self._parameters, self._steps = list(parameters), steps
        kernels = [parameter for parameter in self._parameters if parameter.ndim > 1]
        rest = [parameter for parameter in self._parameters if parameter.ndim <= 1]
        # Muon takes matrices: kernels are seen as such, in the same memory.
        self._kernels = [(kernel, nn.Parameter(kernel.detach().view(len(kernel), -1))) for kernel in kernels]
        matrices = [matrix for _, matrix in self._kernels]
        muon = torch.optim.Muon(matrices, self.MUON * learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(rest, learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        self._optimizers: list[torch.optim.Optimizer] = [muon, adam]
        self._schedules = [torch.optim.lr_scheduler.LambdaLR(each, self._share) for each in self._optimizers]

    def _share(self, step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / self._steps)) / 2

    def step(self, loss: torch.Tensor) -> None:
        """Go down the gradient of a loss."""
        for parameter in self._parameters:
            parameter.grad = None
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for kernel, matrix in self._kernels:
            matrix.grad = None if kernel.grad is None else kernel.grad.view_as(matrix)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
