"""Linear layers and convolutions over time, in the form that processors are fastest at."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from exvideo_pack.exvideo_core import host

from dev.noise import drawn

products = importlib.import_module("exvideo_pack.exvideo_core.chunked.products")
by_onednn = pytest.mark.skipif(not products._LIBRARIES, reason="this torch has other libraries for processors")


@pytest.fixture
def convolutions(monkeypatch):
    """The shapes of kernels that oneDNN was given."""
    seen, convolve = [], products._convolved
    monkeypatch.setattr(
        products, "_convolved", lambda x, kernel, *args: seen.append(kernel.shape) or convolve(x, kernel, *args)
    )
    return seen


@pytest.fixture
def layer():
    return torch.nn.Linear(6, 8)


@by_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (2, 1, 3, 6), (6,), (1, 6), (0, 6)])
def test_linear_layers_are_convolutions(shape, bias, convolutions):
    """Of any number of rows; none has none."""
    x, layer = drawn(*shape), torch.nn.Linear(6, 8, bias=bias)
    with torch.no_grad(), products.by_convolutions(x):
        ours = layer(x)
    assert convolutions == [(8, 6, 1, 1)] * bool(x.numel())
    torch.testing.assert_close(ours, layer(x).detach())


@by_onednn
def test_of_rows_that_do_not_lie_together(layer, convolutions):
    x = drawn(6, 5, 4).permute(1, 2, 0)[:, ::2]
    with torch.no_grad(), products.by_convolutions(x):
        torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)
    assert len(convolutions) == 1


def test_a_single_sum_is_left_to_torch(layer, convolutions):
    x, weight = drawn(5, 6), layer.weight[0]
    with torch.no_grad(), products.by_convolutions(x):
        assert torch.equal(F.linear(x, weight), x @ weight)
    assert convolutions == []


@by_onednn
def test_a_bias_whose_numbers_do_not_lie_together(layer, convolutions):
    x, one = drawn(5, 6), drawn(1)
    kernel, volume = drawn(8, 6, 3, 1, 1), drawn(4, 6, 2, 2).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), products.by_convolutions(x):
        for bias in (one.expand(8), drawn(16)[::2]):
            torch.testing.assert_close(F.linear(x, layer.weight, bias), x @ layer.weight.T + bias)
            over_time = products.over_time(volume, kernel, bias)
            torch.testing.assert_close(over_time, products.over_time(volume, kernel, bias.clone()))
    assert convolutions


@by_onednn
@pytest.mark.parametrize("shape", [(1,), (1, 8), (5, 8)])
def test_what_else_may_be_added_is_left_to_torch(layer, convolutions, shape):
    x, bias = drawn(5, 6), drawn(*shape)
    with torch.no_grad(), products.by_convolutions(x):
        torch.testing.assert_close(F.linear(x, layer.weight, bias), x @ layer.weight.T + bias)
    assert convolutions == []


def test_what_does_not_fit_is_told_by_torch(layer):
    with torch.no_grad(), products.by_convolutions(drawn(5, 7)), pytest.raises(RuntimeError, match="cannot be mult"):
        layer(drawn(5, 7))


@by_onednn
def test_what_comes_out_can_be_seen_in_another_shape(layer):
    """As what torch makes can, also of what lies another way."""
    with torch.no_grad(), products.by_convolutions(drawn(5, 6)):
        assert layer(drawn(1, 6, 5, 5).flatten(2).transpose(1, 2)).view(1, 200).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_left_to_torch(layer, dtype, convolutions):
    layer.to(dtype)
    x = drawn(5, 6).to(dtype)
    with torch.no_grad():
        right = layer(x)
        for like in (x, x.float()):
            with products.by_convolutions(like):
                assert torch.equal(layer(x), right)
    assert convolutions == []


def test_what_needs_a_gradient_is_left_to_torch(layer, convolutions):
    x = drawn(5, 6)
    with torch.no_grad(), products.by_convolutions(x), torch.enable_grad():
        layer(x)
    assert convolutions == []


def test_weights_of_another_kind_have_products_of_their_own(convolutions):
    """As quantized ones of the host's."""
    asked = []

    class Other(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            asked.append(function)
            return "its own"

    weight = drawn(8, 6).as_subclass(Other)
    with torch.no_grad(), products.by_convolutions(drawn(5, 6)):
        assert F.linear(drawn(5, 6), weight) == "its own"
    assert asked == [F.linear]
    assert convolutions == []


@by_onednn
def test_an_extended_pass_goes_so_and_nothing_after_it(loaded, extension, predict, convolutions):
    model = host.apply_extension(loaded[0], extension)
    predict(model, 3)
    of_layers = {kernel for kernel in convolutions if kernel[2:] == (1, 1)}
    query = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.to_q
    assert (*query.weight.shape, 1, 1) in of_layers
    convolutions.clear()
    with torch.no_grad():
        query(drawn(5, query.in_features))
    assert convolutions == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_over_time(frames, layout, dtype, bias):
    convolution = torch.nn.Conv3d(6, 8, (3, 1, 1), padding=(1, 0, 0), bias=bias).to(dtype)
    x = drawn(frames, 6, 4, 3).to(dtype)
    with torch.no_grad():
        ours = products.over_time(x.contiguous(memory_format=layout), convolution.weight, convolution.bias)
        torch.testing.assert_close(ours, convolution(x.transpose(0, 1)[None])[0].transpose(0, 1))


@by_onednn
@pytest.mark.parametrize(("deep", "wide"), [(64, 64), (320, 1280), (5120, 320)])
def test_some_rows_are_the_same_as_all(deep, wide):
    """However few: MKL would round a single one differently, and share out long sums among cores."""
    layer, x = torch.nn.Linear(deep, wide), drawn(130, deep)
    with torch.no_grad(), products.by_convolutions(x):
        whole = layer(x)
        for rows in (1, 2, 7, 63, 64):
            assert torch.equal(torch.cat([layer(some) for some in x.split(rows)]), whole)


@by_onednn
def test_a_convolution_over_time_is_the_same_in_chunks():
    x, kernel, bias = drawn(9, 64, 8, 5), drawn(64, 64, 3, 1, 1), drawn(64)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        whole = products.over_time(x, kernel, bias)
        for rows in (1, 3):
            parts = [products.over_time(part, kernel, bias) for part in x.split(rows, 2)]
            assert torch.equal(torch.cat(parts, 2), whole)
