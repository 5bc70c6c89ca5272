"""What a long run knows a model by: the same for clones that do the same, another for any that does not."""

import pytest
import torch
from exvideo_pack.exvideo_core import host


@pytest.fixture
def extended(loaded, extension):
    return host.apply_extension(loaded[0], extension)


def other_weights(model):
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    change = torch.randn(model.model.state_dict()[key].shape, generator=torch.Generator().manual_seed(3))
    model.add_patches({key: ("diff", (0.1 * change,))}, 1.0)


def other_noise_levels(model):
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

    (patched,) = ModelSamplingContinuousEDM().patch(model, "v_prediction", 120.0, 0.002)
    model.object_patches.update(patched.object_patches)


def other_skips(model, factor=1.5):
    model.set_model_output_block_patch(lambda h, skip, _options: (h * factor, skip))


@pytest.mark.parametrize("change", [other_weights, other_noise_levels, other_skips])
def test_clones_of_a_model_are_told_apart_whichever_is_loaded(extended, predict, change):
    before = host.model_identity(extended)
    clone = extended.clone()
    change(clone)
    changed = host.model_identity(clone)
    assert changed != before
    for model in (extended, clone):
        predict(model, 2)  # now its own weights and noise levels are patched in
        assert (host.model_identity(extended), host.model_identity(clone)) == (before, changed)


def test_a_patch_is_known_by_its_numbers(extended):
    identities = set()
    for factor in (1.5, 1.5, 2.0):
        clone = extended.clone()
        other_skips(clone, factor)
        identities.add(host.model_identity(clone))
    assert len(identities) == 2
