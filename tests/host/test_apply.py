"""The patch: an ordinary MODEL comes out, and the one that went in never notices."""

from dataclasses import replace

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from exvideo_pack.exvideo_core import chunked, host
from exvideo_pack.exvideo_core.extension import LAYERS, Extension, new_extension
from exvideo_pack.exvideo_core.tiny import LAYOUT, draw_checkpoint, draw_extension
from exvideo_pack.exvideo_core.types import ExVideoError

KEY = "diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight"


@pytest.fixture
def model(loaded):
    return loaded[0]


def weights(model):
    comfy.model_management.unload_all_models()
    return {key: tensor.clone() for key, tensor in model.model.state_dict().items()}


def test_the_model_that_went_in_is_untouched(model, extension, predict):
    before, output = weights(model), predict(model, 6)
    extended = host.apply_extension(model, extension)
    changed = predict(extended, 6)
    assert not torch.allclose(changed, output)
    assert torch.equal(predict(model, 6), output)
    assert torch.equal(predict(extended, 6), changed)
    after = weights(model)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert not model.patches
    assert not model.get_additional_models()
    assert not model.get_all_wrappers(WrappersMP.DIFFUSION_MODEL)
    assert not any(map(chunked.is_led, model.model.diffusion_model.modules()))


@pytest.mark.parametrize("frames", [1, 2, 25])
def test_a_new_extension_changes_nothing_on_short_clips(model, predict, frames):
    new = new_extension(host.base_weights(model), 40)
    for strength in (1.0, 0.3):
        assert torch.equal(predict(host.apply_extension(model, new, strength), frames), predict(model, frames))


def test_a_new_extension_matters_beyond(model, predict):
    new = new_extension(host.base_weights(model), 40)
    assert not torch.allclose(predict(host.apply_extension(model, new), 27), predict(model, 27))


def test_strength_zero_is_the_base(model, extension, predict):
    assert torch.equal(predict(host.apply_extension(model, extension, 0.0), 25), predict(model, 25))


def test_patched_weights_are_the_files_own(model, extension):
    extended = host.apply_extension(model, extension)
    comfy.model_management.load_models_gpu([extended])
    state = extended.model.diffusion_model.state_dict()
    for key, weight in extension.replaced_weights():
        assert torch.equal(state[key], weight.to(state[key].dtype)), key
    comfy.model_management.unload_all_models()


def test_strength_blends_weights(model, extension):
    extended = host.apply_extension(model, extension, 0.25)
    base = host.base_weights(model)
    comfy.model_management.load_models_gpu([extended])
    state = extended.model.diffusion_model.state_dict()
    for key, weight in extension.replaced_weights():
        expected = 0.75 * base(key).float() + 0.25 * weight.float()
        torch.testing.assert_close(state[key].float(), expected, rtol=1e-3, atol=1e-3)
    comfy.model_management.unload_all_models()


def test_a_second_extension_replaces_the_first(model, extension, predict):
    once = host.apply_extension(model, extension, 0.5)
    twice = host.apply_extension(host.apply_extension(model, extension), extension, 0.5)
    assert torch.equal(predict(twice, 30), predict(once, 30))
    assert {len(patches) for patches in twice.patches.values()} == {1}
    assert len(twice.patches) == 480
    assert len(twice.get_additional_models()) == 1
    for place in ("PREPARE_SAMPLING", "PREDICT_NOISE", "CALC_COND_BATCH", "DIFFUSION_MODEL"):
        wrappers = [model.get_all_wrappers(getattr(WrappersMP, place)) for model in (once, twice)]
        assert len(wrappers[0]) == len(wrappers[1]) > 0
    none = host.apply_extension(once, extension, 0.0)
    assert not none.patches
    assert len(once.patches[KEY]) == 1


def test_clones_keep_the_extension(model, extension, predict):
    extended = host.apply_extension(model, extension)
    assert torch.equal(predict(extended.clone().clone(), 30), predict(extended, 30))


def test_a_lora_adds_on_top_whether_before_or_after(model, extension, predict):
    difference = {KEY: ("diff", (torch.full_like(host.base_weights(model)(KEY.split(".", 1)[1]), 0.5),))}

    def with_lora(target):
        clone = target.clone()
        assert clone.add_patches(difference, 1.0)
        return clone

    before = predict(host.apply_extension(with_lora(model), extension), 30)
    after = predict(with_lora(host.apply_extension(model, extension)), 30)
    assert torch.equal(before, after)
    assert not torch.allclose(before, predict(host.apply_extension(model, extension), 30))


def test_new_extension_ignores_patches_and_where_weights_are(model, extension):
    extended = host.apply_extension(model, extension)
    comfy.model_management.load_models_gpu([extended])
    loaded_base = host.base_weights(model)
    comfy.model_management.unload_all_models()
    fresh = host.base_weights(model)
    for layer in LAYERS.values():
        key = f"{layer}.time_stack.0.norm1.weight"
        assert torch.equal(loaded_base(key), fresh(key))


def test_the_host_counts_the_new_modules(model, extension):
    (positions,) = host.apply_extension(model, extension).get_additional_models()
    tensors = [t for position in extension.position_weights() for t in position]
    assert positions.model_size() == sum(t.nbytes for t in tensors)
    assert positions.load_device == model.load_device
    assert positions.offload_device == model.offload_device


def test_a_clip_that_is_too_long_names_the_limit(model, extension, predict):
    extended = host.apply_extension(model, Extension({**extension.tensors, **_tables(extension, 20)}, 20))
    assert predict(extended, 20, side=8).isfinite().all()
    with pytest.raises(ExVideoError, match="reaches 20 frames, but the latent has 21"):
        predict(extended, 21, side=8)
    assert not any(map(chunked.is_led, model.model.diffusion_model.modules()))


@pytest.mark.parametrize(("frames", "side"), [(3, 8), (3, 9), (3, 12), (1, 16), (1, 8), (2, 8)])
def test_sizes_the_reference_cannot_do_run(model, extension, predict, frames, side):
    """Latents not divisible by 8, a single frame, a single cell at the deepest level."""
    got = predict(host.apply_extension(model, extension), frames, side=side)
    assert got.shape == (frames, 4, side, side)
    assert got.isfinite().all()


def test_models_that_are_not_svd_are_refused(model, extension):
    """The host's own classes, narrow: Stable Diffusion XL, Wan, and SVD's sister for turning objects around."""
    svd = model.model.model_config.unet_config
    image = {key: value for key, value in svd.items() if "video" not in key and "temporal" not in key}
    image |= {"in_channels": 4, "adm_in_channels": 2816, "use_temporal_attention": False, "merge_strategy": None}
    wan = {"image_model": "wan2.1", "model_type": "t2v", "dim": 64, "ffn_dim": 64, "num_heads": 1, "num_layers": 1}
    others = {
        "SDXL": comfy.supported_models.SDXL({k: v for k, v in image.items() if v is not None}),
        "SV3D_u": comfy.supported_models.SV3D_u({**svd, "adm_in_channels": 256}),
        "WAN21": comfy.supported_models.WAN21_T2V(wan),
    }
    for name, config in others.items():
        with torch.device("meta"):
            other = config.get_model({}, "")
        patcher = comfy.model_patcher.ModelPatcher(other, torch.device("cpu"), torch.device("cpu"))
        for refused in (
            lambda patcher=patcher: host.apply_extension(patcher, extension),
            lambda patcher=patcher: host.base_weights(patcher),
        ):
            with pytest.raises(ExVideoError, match=f"extends Stable Video Diffusion, but the connected .* {name}"):
                refused()


def test_an_extension_of_another_width_is_refused(model):
    wider = replace(LAYOUT, unet=replace(LAYOUT.unet, channels=64))
    other = draw_extension(draw_checkpoint(wider), 4)
    with pytest.raises(ExVideoError, match="does not fit the model"):
        host.apply_extension(model, other)


def _tables(extension, frames):
    name = "positional_embedding.embeddings"
    return {key: tensor[:frames] for key, tensor in extension.tensors.items() if key.endswith(name)}
