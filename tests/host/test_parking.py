"""Skip connections that wait in main memory during a pass."""

import pytest
import torch
from exvideo_pack.exvideo_core import chunked, host, unet
from exvideo_pack.exvideo_core.host import memory


@pytest.fixture
def extended(loaded, extension):
    return host.apply_extension(loaded[0], extension)


def error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_parked_skip_connections_change_nothing(extended, predict, like_a_gpu, monkeypatch):
    expected = predict(extended, 30)
    parked = []
    monkeypatch.setattr(unet, "Parked", lambda x, pin: parked.append(x.shape) or chunked.Parked(x, pin))
    like_a_gpu(0)
    assert error(predict(extended, 30), expected) < 2e-6
    assert len(parked) == 12
    # Where others look at the maps, they find them where they always were.
    seen = []

    def look(h, skip, options):
        seen.append((h.shape, skip.shape, skip.abs().sum() > 0))
        return h, skip

    patched = extended.clone()
    patched.set_model_output_block_patch(look)
    parked.clear()
    assert error(predict(patched, 30), expected) < 2e-6
    assert not parked
    assert len(seen) == 12
    assert all(skip[2:] == h[2:] and real for h, skip, real in seen)


def test_memory_that_was_locked_is_given_back(extended, extension, predict, like_a_gpu, monkeypatch):
    """When a sampling ends, and only where there was some."""
    given = []
    monkeypatch.setattr(memory, "_give_back_locked_memory", lambda: given.append(1))
    predict(extended, 30)
    assert not given
    like_a_gpu(0)
    monkeypatch.setattr(memory, "_can_be_locked", lambda device: True)
    for count in (1, 2):
        predict(extended, 30)
        assert len(given) == count
    # Applied once more, and cloned, it is done once.
    predict(host.apply_extension(extended, extension).clone(), 30)
    assert len(given) == 3


def test_memory_is_given_back_though_a_later_pass_locked_none(like_a_gpu, monkeypatch):
    given = []
    monkeypatch.setattr(memory, "_give_back_locked_memory", lambda: given.append(1))
    monkeypatch.setattr(memory, "_can_be_locked", lambda device: True)
    doing, x = memory.Memory("auto", 32), torch.empty(30, 8, 16, 16)
    like_a_gpu(0)
    assert doing(x).park
    like_a_gpu(1 << 36)
    assert not doing(x).park
    doing.give_back(None)
    assert given


@pytest.mark.parametrize("place", ["input_block_patch", "input_block_patch_after_skip"])
def test_a_patch_beside_the_skip_connections_still_works(extended, predict, like_a_gpu, place):
    patched = extended.clone()
    patched.set_model_patch(lambda h, options: h * 1.1, place)
    expected = predict(patched, 30)
    assert error(expected, predict(extended, 30)) > 1e-3
    like_a_gpu(0)
    assert error(predict(patched, 30), expected) < 2e-6
