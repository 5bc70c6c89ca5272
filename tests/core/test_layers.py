import numpy as np
import pytest
import torch
from torch import nn

from exvideo_core.chunked import Work
from exvideo_core.extension import PositionWeights, new_position_weights, position_ids, sinusoid
from exvideo_core.layers import PositionLayer, PositionLayers, check_length, pad_mirrored
from exvideo_core.types import ExVideoError
from exvideo_core.unet import extended_unet


def test_padding_mirrors_or_repeats_a_single_cell():
    for shape in [(4, 3, 2), (1, 3, 2), (4, 1, 1), (1, 1, 1), (2, 2, 2)]:
        x = torch.randn(2, 3, *shape)
        margins = [(0, 0), (0, 0)] + [(1, 1)] * 3
        padded = pad_mirrored(x)
        # numpy's reflect repeats an axis of one cell as well, which makes it an independent check.
        np.testing.assert_array_equal(padded.numpy(), np.pad(x.numpy(), margins, mode="reflect"))


@pytest.mark.parametrize("videos", [1, 2])
def test_a_new_layer_adds_positions_and_nothing_else(videos):
    frames, height, width, channels = 5, 3, 2, 32
    layer = PositionLayer(new_position_weights(30, channels))
    x = torch.randn(videos * frames, height * width, channels)
    positions = sinusoid(position_ids(frames), channels).repeat(videos, 1)[:, None]
    assert torch.equal(layer(x, range(frames), height, lambda table: table), x + positions)


def test_the_convolution_sees_neighbours_in_time_and_space():
    frames, height, width, channels = 4, 5, 6, 2
    kernel = torch.randn(channels, channels, 3, 3, 3)
    layer = PositionLayer(PositionWeights(torch.zeros(frames, channels), kernel, torch.randn(channels)))
    x = torch.randn(2 * frames, height * width, channels)
    conv = nn.Conv3d(channels, channels, 3, padding=1, padding_mode="reflect")
    conv.weight.data, conv.bias.data = kernel, layer.conv.bias.data
    for video in range(2):
        clip = x[video * frames : (video + 1) * frames]
        volume = clip.view(frames, height, width, channels).permute(3, 0, 1, 2)[None]
        expected = conv(volume)[0].permute(1, 2, 3, 0).reshape(frames, -1, channels)
        got = layer(x, range(frames), height, torch.zeros_like)[video * frames : (video + 1) * frames]
        torch.testing.assert_close(got, expected)


def test_weights_are_shared_not_copied():
    weights = new_position_weights(4, 8)
    layer = PositionLayer(weights)
    assert layer.conv.weight.data_ptr() == weights.kernel.data_ptr()
    assert not any(p.requires_grad for p in layer.parameters())


def test_a_clip_that_is_too_long_names_the_length():
    check_length(128, 128)
    with pytest.raises(ExVideoError, match=r"reaches 128 frames.* has 129.*at most 128.*ExVideo Long Sampler"):
        check_length(129, 128)


def test_layers_are_as_before_even_after_an_exception():
    class UNet:
        def __init__(self):
            self.layers = {}
            self.input_blocks = self.middle_block = self.output_blocks = ()
            self.out = self.layers["out"] = nn.Sequential()

        def get_submodule(self, path):
            return self.layers.setdefault(path, nn.Identity())

    class Executor:
        class_obj = UNet()

        def __call__(self, *_, **__):
            assert all("forward" in vars(layer) for layer in self.class_obj.layers.values())
            raise KeyboardInterrupt

    weights = [new_position_weights(4, 8)._replace(bias=torch.ones(8)) for _ in range(16)]
    with pytest.raises(KeyboardInterrupt):
        extended_unet(
            PositionLayers(weights), lambda x: Work(), Executor(), torch.zeros(4, 8, 2, 2), num_video_frames=4
        )
    assert len(Executor.class_obj.layers) == 17
    assert not any("forward" in vars(layer) for layer in Executor.class_obj.layers.values())


def test_new_layers_change_nothing_on_short_clips():
    new = PositionLayers(new_position_weights(40, 8) for _ in range(16))
    assert new.change_nothing_on(range(25))
    assert not new.change_nothing_on(range(26))
    assert not new.change_nothing_on([3, 4, 5])
    for name in ("table", "kernel", "bias"):
        start = new_position_weights(40, 8)
        other = start._replace(**{name: getattr(start, name) + 1e-3})
        assert not PositionLayers([*[start] * 15, other]).change_nothing_on(range(5))
