"""Several processes, by DeepSpeed's ZeRO, as `accelerate launch --use_deepspeed --zero_stage 2` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from ..types import ExVideoError
from .engine import MOMENTS, Parameters
from .many import Accelerated, imported
from .recipe import Recipe


class Zero(Accelerated):
    """The processes that `accelerate launch` started, among which DeepSpeed spreads gradients and moments.

    It is given the parameters and no more: what is frozen stays as it is, in the precision that it has.

    Raises:
        ExVideoError: accelerate or DeepSpeed is not installed, or its stage is neither 1 nor 2.
    """

    spread = True

    def __init__(self) -> None:
        imported("deepspeed")
        super().__init__()
        self._settings: dict[str, Any] = self._accelerator.state.deepspeed_plugin.deepspeed_config
        if (stage := self._settings["zero_optimization"]["stage"]) not in (1, 2):
            raise ExVideoError(f"Post-tuning runs under stages 1 and 2 of DeepSpeed's ZeRO, got --zero_stage {stage}.")

    def told(self, accelerate: Any) -> dict[str, Any]:
        # accelerate knows no DeepSpeed without a GPU unless it is told how processes speak to each other.
        if torch.cuda.is_available():
            return {}
        # What DeepSpeed would compile first, by a compiler that may not be there, gloo does as well.
        imported("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
        return {"kwargs_handlers": [accelerate.InitProcessGroupKwargs(backend="gloo")]}

    def prepare(self, denoise: Any, parameters: Parameters, recipe: Recipe) -> tuple[Any, Parameters]:
        self._settings |= {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": recipe.clip_norm}
        self._settings |= {"fp16": {"enabled": self.in_half}, "bf16": {"enabled": False}}
        self._settings |= {"gradient_accumulation_steps": recipe.accumulate}
        self._accelerator.gradient_accumulation_steps = recipe.accumulate
        optimizer = torch.optim.AdamW(parameters.values(), recipe.learning_rate, weight_decay=recipe.weight_decay)
        self._zero, _ = self._accelerator.prepare(torch.nn.ParameterList(parameters.values()), optimizer)
        self.optimizer = self._zero.optimizer.optimizer  # on the parts that lie here
        self._first = next(iter(parameters.values()))
        return denoise, parameters

    @property
    def scaled(self) -> bool:
        return self.in_half

    def backward(self, value: torch.Tensor) -> None:
        self._zero.backward(value, scale_wrt_gas=False)
        self._zero.step()  # takes one after every so many losses

    def step(self) -> float:
        return float(self._zero.get_global_grad_norm())

    def value(self, parameter: torch.Tensor) -> torch.Tensor:
        full: torch.Tensor = imported("deepspeed.utils").safe_get_full_fp32_param(parameter)
        return full.cpu()

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        get = imported("deepspeed.utils").safe_get_full_optimizer_state
        if not self.optimizer.state:
            return {}
        return {name: get(parameter, name).cpu() for name in MOMENTS}

    def go_on(
        self, parameter: torch.Tensor, value: torch.Tensor, moments: Mapping[str, torch.Tensor], taken: int
    ) -> None:
        utils, device = imported("deepspeed.utils"), parameter.device
        if moments and not self.optimizer.state:
            self._begin_moments()
        for state in self.optimizer.state.values():
            state["step"] = torch.tensor(float(taken))
        with torch.no_grad():
            parameter.copy_(value)
        utils.safe_set_full_fp32_param(parameter, value.to(device))
        for name, moment in moments.items():
            utils.safe_set_full_optimizer_state(parameter, moment.to(device), name)

    def _begin_moments(self) -> None:
        """There are none before the first step, so take one that changes nothing."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = 0.0
        for _ in range(self._accelerator.gradient_accumulation_steps):
            self.backward(0 * self._first.float().sum())
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    def scaling(self) -> dict[str, Any]:
        if not self.in_half:
            return {}
        return {**GradScaler("cpu").state_dict(), "scale": float(self._zero.optimizer.loss_scale)}

    def scale_as(self, scaling: dict[str, Any]) -> None:
        if self.in_half and scaling:
            self._zero.optimizer.loss_scale = scaling["scale"]
