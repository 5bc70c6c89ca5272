"""The ways that passes go where the channels of maps lie together: half precision on NVIDIA's GPUs, float32 on CPUs.

The first is run on the CPU, too, whose convolutions know that layout; only the fused kernels need a GPU.
"""

import ctypes
import importlib
import shutil
import subprocess
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from exvideo_pack.exvideo_core import chunked, host, layers, unet
from exvideo_pack.exvideo_core.chunked import Parked, Work

from dev.noise import drawn

fused, norms, res_block, transformer = (
    importlib.import_module(f"exvideo_pack.exvideo_core.chunked.{name}")
    for name in ("fused", "norms", "res_block", "transformer")
)


def affine(module, x):
    return nullcontext((module.weight.to(x), module.bias.to(x)))


@pytest.fixture
def by_channels(monkeypatch):
    """As on a GPU; says for how many chunks of maps it was so."""
    seen = []
    monkeypatch.setattr(unet, "layout_for", lambda x: torch.channels_last)
    ask = norms.channels_are_last
    for place in (norms, res_block):
        monkeypatch.setattr(place, "channels_are_last", lambda x: seen.append(ask(x)) or seen[-1])
    return seen


@pytest.mark.parametrize(
    ("frames", "budget", "park"), [(1, None, False), (9, None, False), (4, 1, False), (9, 2**20, True)]
)
def test_a_pass_is_as_near_to_float32_by_channels(
    load, extension, predict, by_channels, monkeypatch, frames, budget, park
):
    monkeypatch.setattr(host.memory.Memory, "__call__", lambda self, x: host.memory.work(budget, park))
    exact, half = (host.apply_extension(load(dtype, dtype), extension) for dtype in (torch.float32, torch.float16))
    right = predict(exact, frames)
    by_channels.clear()
    ours = (predict(half, frames) - right).norm() / right.norm()
    assert sum(by_channels) > 100
    monkeypatch.setattr(unet, "layout_for", lambda x: torch.contiguous_format)
    theirs = (predict(half, frames) - right).norm() / right.norm()
    print(f"\n{frames} frames in {budget} bytes: {ours:.2e} by channels, {theirs:.2e} by maps")
    assert ours < min(1.2 * theirs, 5e-3)


@pytest.fixture
def maps():
    """Half-precision maps by channels: of order 1, far from 0, or all alike, which a trained model has, too."""
    x = drawn(5, 64, 6, 4)
    x[:, 8:16] += 50
    x[:, 16:20] = 6000
    return x.half().to(memory_format=torch.channels_last)


@pytest.fixture(params=[1e-5, 0.1])
def norm(request):
    norm = torch.nn.GroupNorm(32, 64, eps=request.param)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(64, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(64, generator=generator))
    return norm


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("silu", [False, True])
def test_maps_are_normalised_each_by_itself(maps, norm, silu, dtype):
    right = norm.double()(maps.double())
    ours = norms.normalised(affine, norm.float(), maps.to(dtype), silu)
    assert ours.stride() == maps.stride()
    assert ours.dtype == dtype
    _close(ours, F.silu(right) if silu else right)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_maps_are_normalised_over_a_whole_clip(maps, norm, dtype):
    right = F.silu(norm.double()(maps.double().transpose(0, 1)[None])[0].transpose(0, 1))
    for budget in (None, 1):
        moments = norms.clip_moments(Work(budget), maps.to(dtype), 32)
        steps = (*moments, norm.weight.float(), norm.bias.float(), norm.eps)
        for rows in (slice(None), slice(2, 5)):
            ours = norms.activated(maps[:, :, rows].to(dtype), *steps)
            assert ours.dtype == dtype
            _close(ours, right[:, :, rows])


def _close(ours, right):
    assert ours.isfinite().all()
    # Of numbers far from zero, little is kept, and what is alike comes out as the bias.
    far, near = (0.02, 4e-3) if ours.dtype == torch.float16 else (2e-3, 1e-5)
    assert (ours - right).abs().max() < far
    assert (ours - right)[:, :8].abs().max() < near


def test_maps_that_are_all_alike_come_out_as_the_bias(norm):
    """So large that by rounding their deviation would be below zero."""
    x = torch.full((2, 64, 64, 64), 1027).half().to(memory_format=torch.channels_last)
    ours = norms.normalised(affine, norm, x)
    torch.testing.assert_close(ours, norm.bias.half()[:, None, None].expand_as(ours))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_float32_is_normalised_in_parts_to_the_same_bits(norm, layout):
    """Some frames at a time, or some rows of all; large enough for torch to share out its sums among threads."""
    x = drawn(5, 64, 36, 33).contiguous(memory_format=layout)
    whole = norms.normalised(affine, norm, x, silu=True)
    for size in (1, 2, 3):
        parts = [norms.normalised(affine, norm, part, silu=True) for part in x.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    steps = (*norms.clip_moments(Work(None), x, 32), norm.weight, norm.bias, norm.eps)
    clip = norms.activated(x, *steps)
    for rows in (1, 5, 7):
        assert torch.equal(torch.cat([norms.activated(part, *steps) for part in x.split(rows, 2)], 2), clip)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_float32_far_from_zero_keeps_its_deviation(norm, layout):
    """Of means a thousand times as large, squares would leave nothing of it."""
    x = (drawn(3, 64, 9, 7) + 1000).contiguous(memory_format=layout)
    right = norm.double()(x.double())
    norm.float()
    torch.testing.assert_close(norms.normalised(affine, norm, x).double(), right, rtol=0, atol=2e-3)
    moments = norms.clip_moments(Work(1), x, 32)
    var = x.double().view(3, 32, 2, 63).transpose(0, 1).flatten(1).var(1, correction=0).repeat_interleave(2)
    torch.testing.assert_close(moments[1].double(), var, rtol=1e-4, atol=0)


def test_maps_are_parked_in_their_layout(maps):
    kept = Parked(maps)
    assert torch.equal(kept[1:4], maps[1:4])
    assert kept[1:4].stride() == maps[1:4].stride()


def test_values_and_gates_are_the_host_s_feed_forward(loaded):
    """Unless somebody has put something onto its projection, or its weights are quantized: then it is the host's."""
    block = loaded[0].model.diffusion_model.middle_block[1].time_stack[0]
    x = drawn(3, 5, 128)
    asked = []
    ours = transformer._feed_forward(lambda module, x: asked.append(module) or affine(module, x), block.ff, x)
    torch.testing.assert_close(ours, block.ff(x))
    assert asked == [block.ff.net[0].proj]
    seen = []
    hook = block.ff.net[0].proj.register_forward_hook(lambda *args: seen.append(args))
    try:
        assert torch.equal(transformer._feed_forward(affine, block.ff, x), block.ff(x))
    finally:
        hook.remove()
    assert len(seen) == 2
    assert not transformer._is_plain(torch.nn.Linear(2, 2).to(torch.float8_e4m3fn), x)
    assert not transformer._is_plain(torch.nn.Linear(2, 2, device="meta"), x)


@pytest.mark.parametrize("copy", [lambda x: transformer._copied_by_words(x.transpose(0, 1)), transformer._swapped])
def test_rows_are_swapped(copy):
    """By words too where they are some of more rows, as chunks are."""
    x = drawn(3, 9, 8).half()[:, 2:6]
    swapped = copy(x)
    assert swapped.is_contiguous()
    assert torch.equal(swapped, x.transpose(0, 1))


@pytest.mark.parametrize("budget", [None, 1])
def test_each_frame_has_its_own_noise_level_and_ids(loaded, budget):
    """As in the host's block, of two videos in a batch. Of one channel a group, a normalisation would hide it."""
    block = loaded[0].model.diffusion_model.middle_block[0]
    x, emb = drawn(6, 128, 4, 4), drawn(6, 128, seed=1)
    right = block(x, emb, 3)
    torch.testing.assert_close(res_block.res_block(Work(budget), block, x, emb, 3), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("differ", [False, True])
def test_each_video_has_its_own_token(loaded, extension, budget, differ):
    """And another one over time, where there is such."""
    layer = loaded[0].model.diffusion_model.input_blocks[1][1]
    position = layers.PositionLayer(next(iter(extension.position_weights(1.0)))).float()
    x, (token, over_time) = drawn(6, 32, 4, 4), (drawn(2, 1, 64, seed=seed).repeat_interleave(3, 0) for seed in (1, 2))

    def through(work):
        return layers.extended_forward(
            layer, position, work, x.clone(), token, over_time if differ else None, 3, None, {}
        )

    torch.testing.assert_close(through(Work(budget)), through(None), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there kernels are compiled")
def test_where_no_kernel_can_be_compiled_torch_does_it(maps, monkeypatch, caplog):
    """And that is told once."""
    steps = [drawn(64, 1, 1, seed=seed).half() for seed in range(3)]
    right = fused.normalised(maps, *steps, silu=True)
    monkeypatch.setattr(fused, "_can_fuse", lambda x: True)
    fused._kernel.cache_clear()
    for _ in range(2):
        assert torch.equal(fused.normalised(maps, *steps, silu=True), right)
    fused._kernel.cache_clear()
    assert len(caplog.records) == 1
    assert "goes on without fused kernels" in caplog.text


def test_memory_that_runs_out_is_no_fault_of_the_compiler(maps, monkeypatch, caplog):
    """The step is tried again in smaller chunks, and so is the kernel."""
    tries = []

    def run_out(code):
        tries.append(code)
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(fused, "_can_fuse", lambda x: True)
    monkeypatch.setattr(torch.cuda.jiterator, "_create_jit_fn", run_out)
    fused._kernel.cache_clear()
    for _ in range(2):
        with pytest.raises(torch.cuda.OutOfMemoryError):
            fused.gated(maps, maps)
    assert len(tries) == 2
    assert not caplog.records


COMPILER = shutil.which("c++")


@pytest.mark.skipif(not COMPILER, reason="there is no compiler")
def test_what_is_compiled_for_a_gpu_computes_what_torch_does(tmp_path):
    """The same texts, here for float32 on this processor."""
    calls = {"gated": "gated(a, b)", "normalised": "normalised(a, b, c, d)", "silu": "normalised_silu(a, b, c, d)"}
    texts = ["#include <math.h>", fused._GATED, fused._NORMALISED, fused._NORMALISED_SILU]
    given = "float a, float b, float c, float d"
    texts += [f'extern "C" float of_{name}({given}) {{ return {call}; }}' for name, call in calls.items()]
    (tmp_path / "kernels.cpp").write_text("\n".join(texts))
    command = [COMPILER, "-shared", "-fPIC", "-o", str(tmp_path / "kernels.so"), str(tmp_path / "kernels.cpp")]
    subprocess.run(command, check=True)
    library, rows = ctypes.CDLL(str(tmp_path / "kernels.so")), drawn(200, 4) * 3
    found = []
    for name in calls:
        function = getattr(library, f"of_{name}")
        function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * 4
        found.append([function(*row) for row in rows.tolist()])
    a, b, c, d = rows.T
    by_torch = a * F.gelu(b), (a - b) * c + d, F.silu((a - b) * c + d)
    torch.testing.assert_close(torch.tensor(found), torch.stack(by_torch), rtol=1e-5, atol=1e-5)


def test_who_is_led_elsewhere():
    """Not a module that got its own forward back."""
    layer = torch.nn.Linear(2, 2)
    own = layer.forward
    for forward, led in ((own, False), (lambda x: own(x), True)):
        layer.forward = forward
        assert chunked.is_led(layer) == led
    del layer.forward
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
        hook = register(lambda *args: None)
        assert chunked.is_led(layer)
        hook.remove()
    assert not chunked.is_led(layer)


def test_who_goes_by_channels():
    """On the CPU float32 does; not where gradients are wanted."""
    on_cpu = torch.zeros(1, 4, 2, 2)
    assert unet.layout_for(on_cpu) == torch.channels_last
    assert unet.layout_for(on_cpu.half()) == unet.layout_for(on_cpu.double()) == torch.contiguous_format
    by_channels = on_cpu.to(memory_format=torch.channels_last)
    assert norms.channels_are_last(by_channels)
    assert not norms.channels_are_last(on_cpu)
    with torch.enable_grad():
        assert not norms.channels_are_last(by_channels)
    assert chunked.Work().layout == torch.contiguous_format
