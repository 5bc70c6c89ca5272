"""Merged models and extensions: what the host's nodes for merging do before Apply ExVideo, and after it."""

import comfy.lora
import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.tiny import LAYOUT, draw_checkpoint
from safetensors.torch import save_file

NAME = "output_blocks.6.1.time_stack.0.attn1.to_q.weight"
KEY = f"diffusion_model.{NAME}"


@pytest.fixture
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another model of the same shape, as a fine-tune of SVD is: its weights, and itself."""
    path = tmp_path_factory.mktemp("other") / "svd.safetensors"
    weights = draw_checkpoint(LAYOUT, seed=5)
    save_file(weights, path)
    with torch.inference_mode():
        return weights, host.load_svd(path)[0]


def merged(first, second, ratio):
    """The share `ratio` of the first model, the rest of the second."""
    return ModelMergeSimple().merge(first, second, ratio)[0]


def merged_at_once(first, second, ratio, prefix="diffusion_model."):
    """The same for all weights whose names begin so, told at once: one by one takes the host half a minute."""
    clone = first.clone()
    assert clone.add_patches(second.get_key_patches(prefix), 1 - ratio, ratio)
    return clone


def merged_there(first, second, ratio):
    """The same for the weight KEY alone."""
    return merged_at_once(first, second, ratio, KEY)


def patched(model):
    """The UNet's weights as the host samples with them, in float32."""
    comfy.model_management.load_models_gpu([model])
    state = {key: tensor.float().clone() for key, tensor in model.model.diffusion_model.state_dict().items()}
    comfy.model_management.unload_all_models()
    return state


def one_patched(model):
    """The weight KEY as the host patches it, without the work of loading the model."""
    ((weight, _), *patches) = model.get_key_patches(KEY)[KEY]
    return comfy.lora.calculate_weight(patches, weight.float().clone(), KEY)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_merging_blends_all_weights(model, extension, predict, other):
    drawn, other = other
    extended = host.apply_extension(model, extension)
    assert torch.equal(predict(merged(extended, other, 1.0), 30), predict(extended, 30))
    theirs = dict(extension.replaced_weights())[NAME].float()
    close(one_patched(merged_there(extended, other, 0.5)), (theirs + drawn[f"model.{KEY}"]) / 2)


def test_a_merge_of_two_models_with_the_same_extension_keeps_it_whole(model, extension, other):
    """The way to merge that the help recommends."""
    both = [host.apply_extension(each, extension) for each in (model, other[1])]
    state = patched(merged_at_once(*both, 0.3))
    for key, weight in extension.replaced_weights():
        close(state[key], weight.float())


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_an_extension_takes_the_place_of_what_was_merged(model, extension, other, strength):
    """The strength blends between the extension and both models, in their own shares."""
    theirs = dict(extension.replaced_weights())[NAME].float()
    base = merged_there(model, other[1], 0.5)
    expected = torch.lerp(one_patched(base), theirs, strength)
    close(one_patched(host.apply_extension(base, extension, strength)), expected)


def test_a_second_extension_stays_where_the_first_was(model, extension, other):
    """Below what was merged after it, above what was merged before."""
    theirs, base = dict(extension.replaced_weights())[NAME].float(), host.base_weights(model)(NAME).float()
    drawn = other[0][f"model.{KEY}"].float()
    expected = 0.25 * (0.5 * theirs + 0.25 * (base + drawn)) + 0.75 * drawn
    for strength in (1.0, 0.5):
        first = host.apply_extension(merged_there(model, other[1], 0.5), extension, strength)
        again = host.apply_extension(merged_there(first, other[1], 0.25), extension, 0.5)
        close(one_patched(again), expected)


def test_loras_and_multipliers_on_merged_models_act_on_the_extension(model, extension, other):
    """What came after the merging does; what came before it was merged too."""
    difference = {KEY: ("diff", (torch.full_like(host.base_weights(model)(NAME), 0.5),))}

    def half(target):
        """With a LoRA, and then as the host's nodes that multiply attention do it."""
        clone = target.clone()
        assert clone.add_patches(difference, 1.0)
        assert clone.add_patches({KEY: (None,)}, 0.0, 0.5)
        return clone

    theirs = dict(extension.replaced_weights())[NAME].float()
    early = merged_there(half(model), other[1], 0.5)
    close(one_patched(host.apply_extension(early, extension)), theirs)
    late = half(merged_there(model, other[1], 0.5))
    close(one_patched(host.apply_extension(late, extension)), 0.5 * (theirs + 0.5))
