"""What a training runs on: AdamW on one device. What several processes do otherwise is in `many.py` and `zero.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from ..types import ExVideoError
from .recipe import Recipe

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, of each parameter, by torch's names."""
LEAST_SCALE = 2.0**-20
"""A gradient that is not finite even when scaled down so far never will be."""
Parameters = Mapping[str, torch.nn.Parameter]


class Engine:
    """One device.

    Attributes:
        rank, processes: which of how many processes this is.
        spread: whether gradients and moments lie in parts on the devices of several processes.
        in_half: whether passes compute in float16, in which gradients would vanish; scaled up they do not.
    """

    rank, processes, spread, in_half = 0, 1, False, False

    def prepare(self, denoise: Any, parameters: Parameters, recipe: Recipe) -> tuple[Any, Parameters]:
        """Before the first step: the model, and its parameters, as this engine needs them."""
        denoise, parameters = self.placed(denoise, parameters)
        self.parameters, self.clip_norm = parameters, recipe.clip_norm
        self.optimizer = torch.optim.AdamW(parameters.values(), recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.scaler = self._scaler(next(iter(parameters.values())).device)
        return denoise, parameters

    def _scaler(self, device: torch.device) -> GradScaler:
        scaler = GradScaler(device.type, enabled=self.in_half)
        if self.in_half:
            try:  # not all kinds of devices can
                numbers, found = torch.zeros(1, device=device), torch.zeros(1, device=device)
                torch._amp_foreach_non_finite_check_and_unscale_([numbers], found, torch.ones(1, device=device))
            except RuntimeError as error:
                raise ExVideoError(
                    f"In float16 most of a gradient vanishes unless it is scaled up, and torch cannot do that on "
                    f"{device.type} here ({error}): start ComfyUI with --bf16-unet or --fp32-unet."
                ) from error
        return scaler

    @property
    def scaled(self) -> bool:
        """Whether gradients are scaled up, so that a smaller scale mends one that is not finite."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > LEAST_SCALE

    def placed(self, denoise: Any, parameters: Parameters) -> tuple[Any, Parameters]:
        """Model and parameters where the devices of this engine have them."""
        return denoise, parameters

    def backward(self, value: torch.Tensor) -> None:
        """Add the gradient of a loss to that of the step."""
        torch.autograd.backward(self.scaler.scale(value))

    def step(self) -> float:
        """Take a step, unless the gradient is not finite; returns its norm."""
        for parameter in self.parameters.values():
            # AdamW's weight decay acts on weights without a gradient, too: queries and keys of a single token.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.scaler.unscale_(self.optimizer)
        length = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm)
        norm = float(self.whole(length.detach()))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def mean(self, value: float) -> float:
        """Over all processes."""
        return value

    def value(self, parameter: torch.Tensor) -> torch.Tensor:
        """A parameter as one, float32; by all processes at once, as `moments`."""
        return self.whole(parameter.detach())

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """AdamW's moments of a parameter, as one each; none before the first step that it takes."""
        state = self.optimizer.state.get(parameter, {})
        return {name: self.whole(state[name]) for name in MOMENTS if name in state}

    def taken(self) -> int:
        """Steps that AdamW took. Where gradients are scaled, those whose gradient was not finite are not among them."""
        return int(next((state["step"] for state in self.optimizer.state.values()), 0))

    def go_on(
        self, parameter: torch.Tensor, value: torch.Tensor, moments: Mapping[str, torch.Tensor], taken: int
    ) -> None:
        """Give a parameter a value, and the moments that it had after AdamW took so many steps."""
        with torch.no_grad():
            parameter.copy_(self.part(value, parameter))
        if moments:
            here = {name: self.part(moment, parameter) for name, moment in moments.items()}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(taken)), **here}

    def scaling(self) -> dict[str, Any]:
        """How gradients are scaled up, as `GradScaler` says it; empty where they are not."""
        return self.scaler.state_dict()

    def scale_as(self, scaling: dict[str, Any]) -> None:
        """Scale gradients up as `scaling` said; what is empty says nothing, as of a run in another precision."""
        if scaling:
            self.scaler.load_state_dict(scaling)

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """A parameter or moment as one."""
        return tensor

    def part(self, tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        """Of a whole tensor, what of it lies here where `parameter` does; in memory of its own."""
        # A view of the state's file would keep Windows from writing the next state over it.
        return tensor.to(parameter.device, copy=True)
