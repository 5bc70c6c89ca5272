"""A model on several devices, as newer hosts spread predictions over GPUs; here both are this processor."""

import comfy.model_patcher
import pytest
import torch
from comfy.model_base import BaseModel
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.layers import PositionLayer

pytestmark = pytest.mark.skipif(
    not hasattr(comfy.model_patcher.ModelPatcher, "deepclone_multigpu"), reason="newer hosts have it"
)
SECOND = torch.device("cpu:0")


@pytest.fixture
def used(monkeypatch):
    """Models that predicted, and new parts that took part."""
    seen = set()

    def noted(kind, name):
        run = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, *args, **kwargs: seen.add(self) or run(self, *args, **kwargs))

    noted(BaseModel, "apply_model")
    noted(PositionLayer, "embedded")
    return seen


def parts(patcher):
    (beside,) = patcher.get_additional_models_with_key("exvideo")
    return {patcher.model, *beside.model}


def test_predictions_are_spread_over_devices_each_with_its_own_new_parts(loaded, extension, condition, run, used):
    model = host.apply_extension(loaded[0], extension)
    inputs = {**condition(30), "steps": 1}
    (alone,) = run("ExVideoSampler", model=model, **inputs)
    spread = model.clone()
    second = spread.deepclone_multigpu(new_load_device=SECOND)
    second.is_multigpu_base_clone = True
    spread.set_additional_models("multigpu", [second])
    spread.match_multigpu_clones()
    (second,) = spread.get_additional_models_with_key("multigpu")
    used.clear()
    (both,) = run("ExVideoSampler", model=spread, **inputs)
    torch.testing.assert_close(both["samples"], alone["samples"], rtol=1e-4, atol=1e-4)
    assert used == parts(spread) | parts(second)
    assert not parts(spread) & parts(second)


def test_a_model_moved_to_another_device_takes_its_new_parts_along(loaded, extension, predict, used):
    model = host.apply_extension(loaded[0], extension)
    expected = predict(model, 30)
    moved = model.deepclone_multigpu(new_load_device=SECOND)
    used.clear()
    torch.testing.assert_close(predict(moved, 30), expected)
    assert used == parts(moved)
