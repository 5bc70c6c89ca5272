"""What a long run knows a model by: the same for clones that do the same, another for any that does not."""

import comfy.sd
import pytest
import torch
from comfy.patcher_extension import PatcherInjection
from comfy.weight_adapter import LoRAAdapter
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


def test_a_file_in_float32_is_the_same_model_in_half_precision(load, extension):
    """As ComfyUI loads it by itself, and by --fp32-unet, which it is to be gone on with where half is too little."""
    whole, half = (host.apply_extension(load(dtype, torch.float32), extension) for dtype in (torch.float32, torch.half))
    assert host.model_identity(whole) == host.model_identity(half)


def free_u(model, factor):
    from comfy_extras.nodes_freelunch import FreeU

    return FreeU().patch(model, factor, 1.2, 0.9, 0.2)[0]


def predicting(model, kind):
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

    return ModelSamplingContinuousEDM().patch(model, kind, 120.0, 0.002)[0]


def with_alpha(model, alpha):
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    rows, columns = model.model.state_dict()[key].shape
    adapter = LoRAAdapter({key}, (torch.ones(rows, 2), torch.ones(2, columns), alpha, None, None, None))
    clone = model.clone()
    clone.add_patches({key: adapter}, 0.5)
    return clone


@pytest.mark.parametrize(
    ("make", "values"), [(free_u, (1.1, 1.4)), (predicting, ("v_prediction", "eps", "edm")), (with_alpha, (4.0, 16.0))]
)
def test_what_nodes_of_the_hosts_set_is_told_apart(extended, make, values):
    identities = [host.model_identity(make(extended, value)) for value in (*values, *values)]
    assert identities[: len(values)] == identities[len(values) :]
    assert len(set(identities)) == len(values)


def lazy(model, threshold):
    from comfy_extras.nodes_easycache import LazyCacheNode

    (cached,) = LazyCacheNode.execute(model, threshold, 0.0, 1.0, False).args
    return cached


def injected(model, factor):
    """As some nodes lead layers, without their weights."""
    layer, clone = model.model.diffusion_model.out[2], model.clone()
    bias = layer.bias.detach().clone()

    def inject(_):
        layer.bias.data = factor * bias

    def eject(_):
        layer.bias.data = bias

    clone.set_injections("bias", [PatcherInjection(inject, eject)])
    return clone


@pytest.fixture(params=["threshold", "length", "fusing", "factor"])
def made(request, windowed):
    """What makes another model by a setting, and two of that."""
    return {
        "threshold": (lazy, 0.2, 0.3),
        "length": (lambda model, length: windowed(model, context_length=length, context_overlap=1), 4, 6),
        "fusing": (
            lambda model, way: windowed(model, context_length=4, context_overlap=1, fuse_method=way),
            "pyramid",
            "flat",
        ),
        "factor": (injected, 0.5, 2.0),
    }[request.param]


def test_what_others_hang_on_a_model_is_known_by_its_settings(extended, predict, made):
    made, some, others = made
    models = [extended, made(extended, some), made(extended, others)]
    before = [host.model_identity(model) for model in models]
    assert len(set(before)) == 3
    assert host.model_identity(made(extended, some)) == before[1]
    for model in models:
        predict(model, 8)  # in which some of them count and keep
    assert [host.model_identity(model) for model in models] == before


@pytest.mark.skipif(not hasattr(comfy.sd, "load_bypass_lora_for_models"), reason="newer hosts have it")
def test_loras_that_leave_the_weights_alone_are_told_apart(extended, predict):
    layer = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    width = extended.model.state_dict()[f"{layer}.weight"].shape[0]

    def led(strength, seed=0):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"{layer}.lora_up.weight": torch.randn(width, 2, generator=generator).half(),
            f"{layer}.lora_down.weight": torch.randn(2, width, generator=generator).half(),
        }
        return comfy.sd.load_bypass_lora_for_models(extended, None, tensors, strength, 0)[0]

    models = [extended, led(0.5), led(0.7), led(0.5, seed=1)]
    before = [host.model_identity(model) for model in models]
    assert len(set(before)) == 4
    for model in models:
        predict(model, 2)  # now the host has brought its tensors to the model's precision
    assert [host.model_identity(model) for model in models] == before
