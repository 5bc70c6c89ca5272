import pytest

from exvideo_core.svd import CLIPLayout, SVDLayout, UNetLayout, VAELayout, read_layout
from exvideo_core.tiny import LAYOUT
from exvideo_core.types import ExVideoError


@pytest.mark.parametrize(
    "layout",
    [
        SVDLayout(),
        LAYOUT,
        SVDLayout(
            UNetLayout(channels=64, multipliers=(1, 2, 2, 3), context=32),
            VAELayout(channels=64, multipliers=(1, 2, 3, 3)),
            CLIPLayout(width=160, layers=3, hidden=320, patch=28, image=112, projection=32),
        ),
    ],
)
def test_widths_are_read_from_the_tensors(layout):
    assert read_layout("a file", layout.tensors()) == layout
    assert read_layout("a file", layout.tensors(saved=True)) == layout


def test_tensors_beyond_the_layout_do_no_harm():
    assert read_layout("a file", {**LAYOUT.tensors(), "model_ema.decay": (1,)}) == LAYOUT


@pytest.mark.parametrize(
    "missing",
    [
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.output_blocks.11.1.time_stack.0.norm3.bias",
        "first_stage_model.decoder.conv_out.time_mix_conv.weight",
        "conditioner.embedders.0.open_clip.model.visual.proj",
    ],
)
def test_a_missing_part_is_named(missing):
    shapes = LAYOUT.tensors()
    del shapes[missing]
    with pytest.raises(ExVideoError) as error:
        read_layout("some.safetensors", shapes)
    assert "some.safetensors" in str(error.value)
    assert missing in str(error.value)


def test_the_variant_for_single_pictures_is_told():
    """Beside each SVD there is one with the decoder of the models for pictures."""
    names = (".time_stack.", ".mix_factor", ".time_mix_conv.")
    shapes = {
        key: shape
        for key, shape in LAYOUT.tensors().items()
        if not (key.startswith("first_stage_model.decoder.") and any(name in key for name in names))
    }
    with pytest.raises(ExVideoError, match=r"a decoder for single pictures.* without image_decoder in its name"):
        read_layout("svd_xt_image_decoder.safetensors", shapes)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", (0, 8, 3, 3)),
        ("model.diffusion_model.input_blocks.1.1.time_stack.0.attn2.to_k.weight", (64,)),
        ("conditioner.embedders.0.open_clip.model.visual.conv1.weight", (32, 3)),
    ],
)
def test_shapes_that_nothing_has_are_told(key, shape):
    with pytest.raises(ExVideoError, match="damaged or not of Stable Video Diffusion's form"):
        read_layout("some.safetensors", {**LAYOUT.tensors(), key: shape})


@pytest.mark.parametrize(
    ("saved", "key"),
    [
        (False, "model.diffusion_model.middle_block.1.proj_in.weight"),
        (True, "conditioner.embedders.0.open_clip.model.visual.vision_model.encoder.layers.1.self_attn.k_proj.weight"),
    ],
)
def test_a_tensor_of_the_wrong_shape_is_named(saved, key):
    with pytest.raises(ExVideoError, match=key):
        read_layout("some.safetensors", {**LAYOUT.tensors(saved), key: (3, 3)})
