import numpy as np
import pytest
import torch

from dev import reference
from exvideo_core.schedule import sigmas
from exvideo_core.types import ExVideoError

CASES = [(steps, denoise) for steps in (1, 2, 5, 25, 50, 127) for denoise in (1.0, 0.9, 0.5, 0.13, 0.01)]


@pytest.mark.parametrize(("steps", "denoise"), CASES)
def test_equals_the_formula_in_float64(steps, denoise):
    ramp = np.linspace(1 - denoise, 1, steps)
    formula = (700 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 700 ** (1 / 7))) ** 7
    # Near σ = 0.002 the difference of two numbers near 2.5 loses digits: float32 rounding, times 7.
    np.testing.assert_allclose(sigmas(steps, denoise)[:-1].numpy(), formula, rtol=2e-5)


@pytest.mark.parametrize(("steps", "denoise"), CASES)
def test_equals_the_reference(steps, denoise):
    scheduler = reference.scheduler()
    scheduler.set_timesteps(steps, denoising_strength=denoise)
    torch.testing.assert_close(sigmas(steps, denoise)[:-1], scheduler.sigmas, rtol=1e-6, atol=0)


def test_ends_in_zero_and_falls():
    levels = sigmas(25)
    assert levels[0] == pytest.approx(700, rel=1e-5)
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()


@pytest.mark.parametrize(("steps", "denoise"), [(0, 1.0), (5, 0.0), (5, 1.1), (5, float("nan"))])
def test_numbers_out_of_range_are_refused(steps, denoise):
    with pytest.raises(ExVideoError):
        sigmas(steps, denoise)
