"""Weights that wait elsewhere, or for their patches, and what is lent of them."""

from collections import Counter

import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from exvideo_pack.exvideo_core import budget, host
from exvideo_pack.exvideo_core.host import weights
from exvideo_pack.exvideo_core.host.memory import OUT_OF_MEMORY


@pytest.fixture
def extended(loaded, extension):
    return host.apply_extension(loaded[0], extension)


class Out(list):
    most = 0


@pytest.fixture
def lent(monkeypatch):
    """Modules whose weights we have been lent and have not given back, and how many there were at most."""
    out = Out()

    class Noted(weights.Lent):
        def __init__(self, module, x):
            assert not any(weights._waits(other, x) for other in out)
            super().__init__(module, x)
            out.append(module)
            out.most = max(out.most, len(out))

        def __exit__(self, *error):
            super().__exit__(*error)
            out.remove(self._module)

    monkeypatch.setattr(weights, "Lent", Noted)
    monkeypatch.setattr(host.memory, "Lent", Noted)
    return out


@pytest.fixture(params=[1 << 40, 1 << 18])
def whole(request, extended, predict, little_memory, monkeypatch):
    """A pass with all in memory; from then on little fits, and work is still cut into chunks of the same size."""
    monkeypatch.setattr(budget, "CPU_BUDGET", request.param)
    made = predict(extended, 30)
    comfy.model_management.unload_all_models()
    little_memory(extended.model_size())
    plan = host.memory.Memory.plan
    monkeypatch.setattr(
        host.memory.Memory, "plan", lambda *args: plan(*args)._replace(budget=request.param, park=False)
    )
    return made


def test_what_waits_is_patched_once_a_pass(extended, predict, whole, monkeypatch):
    """However many chunks there are; and the model then is as it was."""
    patched, patch = Counter(), comfy.model_patcher.LowVramPatch.__call__

    def noted(self, weight):
        patched[self.key] += 1
        return patch(self, weight)

    monkeypatch.setattr(comfy.model_patcher.LowVramPatch, "__call__", noted)
    part = predict(extended, 30)
    assert extended.model.model_lowvram
    assert set(patched.values()) == {1}
    assert len(patched) > 100
    assert torch.equal(part, whole)


def test_what_is_at_hand_stays(extended, predict, monkeypatch):
    """Whole in memory and patched, weights are not copied."""
    predict(extended, 30)
    monkeypatch.setattr(weights, "_copies", None)
    predict(extended, 30)


def test_all_that_is_lent_is_given_back(extended, predict, lent, little_memory):
    """And only what is at hand stays lent beside others: the rest could lie in one place of a newer host."""
    comfy.model_management.unload_all_models()
    little_memory(extended.model_size())
    predict(extended, 30)
    assert extended.model.model_lowvram
    assert lent.most == 2
    assert not lent


def test_an_error_gives_it_back_too(extended, predict, lent, monkeypatch):
    layer = extended.model.diffusion_model.input_blocks[1][0].time_stack.in_layers[2]

    def fail(*_args):
        assert lent
        raise OUT_OF_MEMORY("CUDA out of memory")

    monkeypatch.setattr(type(layer), "_conv_forward", fail)
    monkeypatch.setattr("exvideo_pack.exvideo_core.chunked.products.over_time", fail)
    with pytest.raises(OUT_OF_MEMORY):
        predict(extended, 30)
    assert not lent


def test_what_was_given_back_is_not_looked_at_again(extended, predict, whole, monkeypatch):
    """Newer hosts may have streamed the next weights there by then."""

    class Overwritten(weights.Lent):
        def __enter__(self):
            self._copies = [tensor if tensor is None else tensor.clone() for tensor in super().__enter__()]
            return tuple(self._copies)

        def __exit__(self, *error):
            super().__exit__(*error)
            for tensor in self._copies:
                if tensor is not None:
                    tensor.fill_(torch.nan)

    monkeypatch.setattr(weights, "Lent", Overwritten)
    monkeypatch.setattr(host.memory, "Lent", Overwritten)
    part = predict(extended, 30)
    assert extended.model.model_lowvram
    assert torch.equal(part, whole)
