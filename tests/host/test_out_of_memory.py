"""Passes that go on, or do not, when memory ran out; without a UNet."""

import pytest
import torch
from exvideo_pack.exvideo_core.host import memory
from exvideo_pack.exvideo_core.host.memory import OUT_OF_MEMORY

from benchmarks.counted import GIB


def test_a_pass_of_the_hosts_own_is_not_tried_again_after_one_of_ours():
    doing, x, tries = memory.Memory("fast", 32), torch.empty(8, 8, 8, 8), []

    def fail(_x):
        assert not tries
        tries.append(1)
        raise OUT_OF_MEMORY("CUDA out of memory")

    doing.retrying(doing, x)
    with pytest.raises(OUT_OF_MEMORY):
        doing.retrying(fail, x)


def test_a_second_try_is_given_all_that_the_first_took():
    doing, x, taken = memory.Memory("fast", 32), torch.empty(8, 8, 8, 8), []

    def take(x, control):
        doing(x)
        taken.append(control["output"].pop())
        if len(taken) == 1:
            raise OUT_OF_MEMORY("CUDA out of memory")

    doing.retrying(take, x, {"output": [7]})
    assert taken == [7, 7]


def test_skip_connections_wait_in_main_memory_once_memory_ran_out(like_a_gpu):
    """Where that is another than the device's; and no pass works in more than before."""
    x = torch.empty(8, 8, 8, 8)
    short = memory.Memory("auto", 32, ran_out=(x.numel(), 1 << 40))
    assert short(x).budget == memory.Memory("auto", 32)(x).budget
    assert not short(x).park
    like_a_gpu(64 * GIB)
    assert short(x).park
    assert not memory.Memory("auto", 32)(x).park


def test_errors_that_say_that_memory_ran_out():
    """Apple's have no class of their own."""
    assert memory.ran_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"))
    assert not memory.ran_out_of_memory(RuntimeError("shapes do not fit"))
    assert not memory.ran_out_of_memory(ValueError("out of memory"))
