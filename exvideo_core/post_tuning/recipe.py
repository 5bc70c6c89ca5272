"""The settings of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from ..export import check_rate
from ..schedule import SIGMA_MAX
from ..types import ExVideoError
from .objective import CONTRAST

AUTHORS_LEARNING_RATE = 1e-5


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Each setting says beside its default what it is.

    Raises:
        ExVideoError: numbers that nothing can be trained with.
    """

    steps: int = field(metadata={"help": "in all, those of earlier runs that this one goes on from included"})
    learning_rate: float = _setting(AUTHORS_LEARNING_RATE, "of AdamW; the authors take 1e-5")
    seed: int = _setting(0, "of the order of clips, noise levels and noise")
    fps: float = _setting(30.0, "frames a second of the clips, which the model is told")
    scale: float = _setting(0.18215, "from the autoencoder's latents to the model's")
    contrast: float = _setting(CONTRAST, "of the latents that the loss asks for; 1 leaves them as they are")
    sigma_min: float = _setting(
        0.0, "lowest noise level to learn at; the authors take all of the schedule (0), and high ones decide what moves"
    )
    weight_decay: float = _setting(0.01, "of AdamW")
    clip_norm: float = _setting(1.0, "length that a gradient is scaled down to where it is longer")
    average: float = _setting(0.9, "share of the running average that stays, each time it takes the parameters in")
    average_every: int = _setting(10, "steps between these times")
    save_every: int = _setting(500, "steps between checkpoints")
    accumulate: int = _setting(1, "clips to a step")

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
        for setting in fields(self):
            if isinstance(number := getattr(self, setting.name), float) and not math.isfinite(number):
                raise ExVideoError(f"{setting.name} is a finite number, got {number}.")
