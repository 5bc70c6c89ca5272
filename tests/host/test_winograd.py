"""Convolutions in fewer products, on a processor."""

import functools
import importlib

import comfy.ops
import pytest
import torch
import torch.nn.functional as F
from exvideo_pack.exvideo_core import host, layers
from exvideo_pack.exvideo_core.chunked import Work

transformer, winograd = (
    importlib.import_module(f"exvideo_pack.exvideo_core.chunked.{name}") for name in ("transformer", "winograd")
)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("size", [(5, 6, 4), (1, 1, 1), (4, 3, 6), (2, 8, 7)])
@pytest.mark.parametrize("block", [1, 5000, winograd._BLOCK])
def test_a_convolution(places, size, block, monkeypatch):
    """Whole, or row by row and few channels at a time; what is behind an odd row or column counts for nothing."""
    monkeypatch.setattr(winograd, "_BLOCK", block)
    along, height, width = size
    x, kernel, bias = noise(along + places - 1, height + 2, width + 2, 6), noise(40, 6, 3, places, 3), noise(40)
    right = F.conv3d(x.permute(3, 1, 0, 2)[None], kernel, bias)[0].permute(2, 1, 3, 0)
    behind = F.pad(x, (0, 0, 0, width % 2, 0, height % 2), value=1e3)
    out = torch.full((along, height, width, 40), torch.nan, dtype=torch.float64)
    winograd.convolve(behind, kernel, bias, out)
    torch.testing.assert_close(out, right)
    winograd.convolve(behind, kernel, None, out)
    torch.testing.assert_close(out, right - bias)


def test_it_rounds_as_little_as_other_convolutions():
    """Within a bound that torch's own by maps keeps, too."""
    x, kernel = noise(2, 320, 16, 16), noise(320, 320, 3, 3)
    right = F.conv2d(x, kernel, padding=1)
    by_channels = x.float().contiguous(memory_format=torch.channels_last)
    for ours in (winograd.over_maps(by_channels, kernel.float(), None), F.conv2d(x.float(), kernel.float(), padding=1)):
        assert (ours - right).norm() < 1e-6 * right.norm()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 5), (1, 2)])
def test_a_convolution_of_the_host_s(stride, size, monkeypatch):
    monkeypatch.setattr(winograd, "_LEAST", 0)
    seen, convolve = [], winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *args: seen.append(True) or convolve(*args))
    layer = comfy.ops.manual_cast.Conv2d(6, 8, 3, stride=stride, padding=1, dtype=torch.float64)
    torch.nn.Conv2d.reset_parameters(layer)
    x = noise(3, 6, *size)
    with torch.no_grad():
        torch.testing.assert_close(winograd.convolved(Work().affine, layer, x), layer(x))
    assert seen == [True] * (stride == 1)


def test_where_it_pays():
    """With many channels; not in half precision, whose sums would be rounded on the way, nor in training."""
    x, conv, narrower = torch.zeros(1, 256, 2, 3), *(torch.nn.Conv2d(256, wide, 3) for wide in (256, 255))
    with torch.no_grad():
        assert winograd.pays(x, conv)
        assert not winograd.pays(x, narrower)
        assert not winograd.pays(x.half(), conv)
    with torch.enable_grad():
        assert not winograd.pays(x, conv)


def test_a_compiler_gets_one_convolution():
    """Of Winograd's it would write out every block."""
    x, conv, seen = torch.zeros(1, 256, 2, 3), torch.nn.Conv2d(256, 256, 3), []

    def run(x):
        seen.append(winograd.pays(x, conv))
        return x + 1

    with torch.no_grad():
        torch.compile(run, backend="eager")(x)
    assert seen == [False]


@pytest.mark.parametrize("kind", ["Conv2d", "Conv3d"])
def test_convolutions_that_others_put_in_the_place_of_these_are_made(load, extension, predict, monkeypatch, kind):
    """As by nodes for seamless textures, here with kernels of nine tenths."""
    model = host.apply_extension(load(torch.float64, torch.float64), extension)
    plain = predict(model, 3)

    def otherwise(conv, x, weight, bias):
        return getattr(torch.nn, kind)._conv_forward(conv, x, weight * 0.9, bias)

    with torch.no_grad():
        for conv in model.model.diffusion_model.modules():
            if type(conv).__name__ == kind:
                monkeypatch.setattr(conv, "_conv_forward", functools.partial(otherwise, conv), raising=False)
    right = predict(model, 3)
    assert (right - plain).abs().max() > 0.01
    monkeypatch.setattr(winograd, "_LEAST", 0)
    torch.testing.assert_close(predict(model, 3), right, rtol=1e-5, atol=1e-5)


def test_other_edges_than_zeros_are_kept():
    """As nodes for seamless textures set them, on layers of SVD's own width."""
    layer = comfy.ops.manual_cast.Conv2d(256, 256, 3, padding=1, padding_mode="circular")
    torch.nn.Conv2d.reset_parameters(layer)
    x = noise(1, 256, 4, 6).float()
    with torch.no_grad():
        torch.testing.assert_close(winograd.convolved(Work().affine, layer, x), layer(x))


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_neighbours_are_mixed_the_same_whatever_the_band(frames, extension, monkeypatch):
    """And as torch mixes them."""
    (weights, *_) = extension.position_weights(1.0)
    position = layers.PositionLayer(weights).double()
    channels = len(weights.kernel)
    clip, embedded = noise(frames, 5, 3, channels), noise(frames, channels)

    def band(start, stop):
        with torch.no_grad():
            return transformer._positioned(Work().affine, position, clip, embedded, slice(start, stop))

    right = band(0, 5)
    monkeypatch.setattr(winograd, "_LEAST", 0)
    torch.testing.assert_close(band(0, 5), right)
    torch.testing.assert_close(torch.cat([band(0, 1), band(1, 4), band(4, 5)], 1), band(0, 5), rtol=0, atol=1e-12)


def test_a_pass_is_the_same(load, extension, predict, monkeypatch):
    """Those between the levels, too."""
    model = host.apply_extension(load(torch.float64, torch.float64), extension)
    monkeypatch.setattr(host.memory.Memory, "__call__", lambda self, x: host.memory.work(None))
    right = predict(model, 3)
    seen, convolve = [], winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *args: seen.append(args[1].shape[3]) or convolve(*args))
    monkeypatch.setattr(winograd, "_LEAST", 0)
    torch.testing.assert_close(predict(model, 3), right, rtol=1e-5, atol=1e-5)
    # Three up, and two in each of the 22 ResNet blocks; one in each of the 16 transformers.
    assert (seen.count(1), seen.count(3)) == (3 + 44, 16)
