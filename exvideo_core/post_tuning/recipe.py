"""The settings of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..export import check_rate
from ..schedule import SIGMA_MAX
from ..types import ExVideoError
from .objective import CONTRAST

AUTHORS_LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        steps: in all, those of earlier runs that this one goes on from included.
        learning_rate: of AdamW. The authors take 1e-5.
        seed: of the order of clips, noise levels and noise.
        fps: frames a second that the model is told; the clips have as many.
        scale: from the autoencoder's latents to the model's.
        contrast: see `objective.loss`.
        sigma_min: lowest noise level to learn at. The authors take all of the schedule (0); what goes where is decided
            at high ones, and pictures are drawn at low ones, which the base can do.
        weight_decay: of AdamW.
        clip_norm: the gradient is scaled down to this norm where it is longer.
        average: share of the running average that stays, each time it takes the parameters in.
        average_every: steps between these times.
        save_every: steps between checkpoints.
        accumulate: clips to a step.

    Raises:
        ExVideoError: numbers that nothing can be trained with.
    """

    steps: int
    learning_rate: float = AUTHORS_LEARNING_RATE
    seed: int = 0
    fps: float = 30.0
    scale: float = 0.18215
    contrast: float = CONTRAST
    sigma_min: float = 0.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    average: float = 0.9
    average_every: int = 10
    save_every: int = 500
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "average_every", "save_every", "accumulate"):
            if (number := getattr(self, name)) < 1:
                raise ExVideoError(f"Post-tuning needs at least 1 for {name}, got {number}.")
        check_rate(self.fps)
        for holds, sentence in (
            (0 < self.learning_rate < 1, f"A learning rate lies between 0 and 1, got {self.learning_rate}."),
            (
                0 <= self.sigma_min < SIGMA_MAX,
                f"sigma_min lies between 0 and the schedule's {SIGMA_MAX:g}, got {self.sigma_min}.",
            ),
            (0 <= self.weight_decay < math.inf, f"weight_decay is 0 or more, got {self.weight_decay}."),
            (self.clip_norm > 0, f"clip_norm is more than 0, got {self.clip_norm}."),
            (0 <= self.average <= 1, f"average is a share between 0 and 1, got {self.average}."),
        ):
            if not holds:
                raise ExVideoError(sentence)
        for field in fields(self):
            if isinstance(number := getattr(self, field.name), float) and not math.isfinite(number):
                raise ExVideoError(f"{field.name} is a finite number, got {number}.")
