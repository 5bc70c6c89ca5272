"""Half precision and less: the extended model runs in all that the host offers, with an error that is told."""

import comfy.model_management
import pytest
import torch
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.extension import Extension
from exvideo_pack.exvideo_core.tiny import CHECKPOINT

FLOAT8 = torch.float8_e4m3fn


@pytest.fixture
def load(models, extension, monkeypatch):
    """The extended tiny model, its weights stored and its arithmetic done as told."""

    def call(stored, computed):
        # The host's choice for this machine would be float32 throughout.
        with monkeypatch.context() as patch:
            patch.setattr(comfy.model_management, "unet_dtype", lambda *args, **kwargs: stored)
            cast = None if stored == computed else computed
            patch.setattr(comfy.model_management, "unet_manual_cast", lambda *args, **kwargs: cast)
            model = host.load_svd(models / CHECKPOINT)[0]
        assert model.model.get_dtype() == stored
        assert (model.model.manual_cast_dtype or stored) == computed
        return model

    return call


@pytest.mark.parametrize(
    ("stored", "computed", "bound"),
    [
        (torch.float16, torch.float32, 1e-6),
        (torch.float16, torch.float16, 5e-3),
        (torch.bfloat16, torch.float32, 2e-2),
        (torch.bfloat16, torch.bfloat16, 4e-2),
        (FLOAT8, torch.float32, 2e-1),
        (FLOAT8, torch.float16, 2e-1),
        (FLOAT8, torch.bfloat16, 2e-1),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_every_precision_runs(load, extension, predict, parity, stored, computed, bound):
    exact = predict(host.apply_extension(load(torch.float32, torch.float32), extension), 6)
    model = load(stored, computed)
    got = predict(host.apply_extension(model, extension), 6)
    name = f"{stored} weights, {computed} arithmetic".replace("torch.", "")
    parity(f"{name}, against float32", "6 frames", got.float(), exact.float(), bound)
    # The base has the same error: it is the precision's, not the extension's.
    base, exact_base = predict(model, 6), predict(load(torch.float32, torch.float32), 6)
    base_error = ((base - exact_base).norm() / exact_base.norm()).item()
    assert ((got - exact).norm() / exact.norm()).item() < 3 * base_error + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extensions_of_every_precision_apply_to_every_model(load, extension, predict, dtype):
    cast = Extension({key: tensor.to(dtype) for key, tensor in extension.tensors.items()}, extension.num_frames)
    exact = predict(host.apply_extension(load(torch.float32, torch.float32), extension), 6)
    for stored in (torch.float32, torch.float16, torch.bfloat16):
        got = predict(host.apply_extension(load(stored, stored), cast), 6)
        assert ((got - exact).norm() / exact.norm()).item() < 4e-2
