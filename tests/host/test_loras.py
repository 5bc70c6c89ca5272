"""LoRAs on the extended model: beside the extension's own weights, and where they leave all weights alone."""

from functools import partial

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import PatcherInjection
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.extension import new_extension
from exvideo_pack.exvideo_core.tiny import LAYOUT

SPATIAL = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q"
TEMPORAL = "diffusion_model.output_blocks.6.1.time_stack.0.attn1.to_q"
SINGLE_FRAMES = "diffusion_model.input_blocks.1.0.out_layers.3"
OVER_FRAMES = "diffusion_model.input_blocks.1.0.time_stack.in_layers.2"


@pytest.fixture
def model(loaded):
    return loaded[0]


@pytest.fixture
def new(model):
    """An extension that changes nothing on short clips: whatever then differs from the base is a defect."""
    return new_extension(host.base_weights(model), 40)


def lora(*keys):
    """A LoRA as its file has it, of rank 2, on linear layers of SVD's UNet."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for key in keys:
        tensors[f"{key}.lora_up.weight"] = torch.randn(2 * LAYOUT.unet.channels, 2, generator=generator)
        tensors[f"{key}.lora_down.weight"] = torch.randn(2, 2 * LAYOUT.unet.channels, generator=generator)
    return tensors


def with_lora(model, *keys, strength=0.7):
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora(*keys), strength, 0)
    assert sum(len(patches) for patches in patched.patches.values()) > sum(len(p) for p in model.patches.values())
    return patched


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_what_changes_nothing_changes_nothing_beside_a_lora(model, extension, new, predict, strength):
    base = with_lora(model, SPATIAL, TEMPORAL)
    assert torch.equal(predict(host.apply_extension(base, new, strength), 25), predict(base, 25))
    assert torch.equal(predict(host.apply_extension(base, extension, 0.0), 25), predict(base, 25))


@pytest.mark.parametrize("keys", [(SPATIAL,), (TEMPORAL,), (SPATIAL, TEMPORAL)])
def test_a_lora_before_or_after(model, extension, predict, keys):
    before = predict(host.apply_extension(with_lora(model, *keys), extension), 6)
    after = predict(with_lora(host.apply_extension(model, extension), *keys), 6)
    assert torch.equal(before, after)
    assert not torch.allclose(before, predict(host.apply_extension(model, extension), 6))


def test_a_temporal_lora_adds_its_difference_to_the_extension(model, extension):
    patched = host.apply_extension(with_lora(model, TEMPORAL, strength=0.5), extension)
    comfy.model_management.load_models_gpu([patched])
    got = patched.model.state_dict()[f"{TEMPORAL}.weight"].float()
    theirs = dict(extension.replaced_weights())[f"{TEMPORAL.removeprefix('diffusion_model.')}.weight"].float()
    tensors = lora(TEMPORAL)
    difference = tensors[f"{TEMPORAL}.lora_up.weight"] @ tensors[f"{TEMPORAL}.lora_down.weight"]
    torch.testing.assert_close(got, theirs + 0.5 * difference, rtol=1e-3, atol=1e-3)
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("frames", [1, 5])
def test_layers_led_elsewhere_are_led_there(model, extension, predict, frames):
    """By injections, as newer hosts apply a LoRA that leaves the weights alone ("bypass"): every layer gives a tenth
    more, which with weights and biases a tenth larger it gives, too."""
    extended = host.apply_extension(model, extension)
    comfy.model_management.load_models_gpu([extended])
    layers = {
        name: layer
        for name, layer in model.model.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d)
    }

    tenths = {
        f"{name}.{key}": (0.1 * tensor,) for name, layer in layers.items() for key, tensor in layer.named_parameters()
    }

    def inject(_):
        for layer in layers.values():
            layer.forward = partial(_a_tenth_more, layer.forward)

    def eject(_):
        for layer in layers.values():
            del layer.forward

    led, larger = extended.clone(), extended.clone()
    led.set_injections("bypass_lora", [PatcherInjection(inject, eject)])
    larger.add_patches(tenths)
    right = predict(larger, frames)
    torch.testing.assert_close(predict(led, frames), right, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(predict(extended, frames), right, rtol=1e-2)


@pytest.mark.skipif(not hasattr(comfy.sd, "load_bypass_lora_for_models"), reason="newer hosts have it")
def test_a_lora_that_leaves_the_weights_alone(model, extension, predict):
    tensors, generator = lora(SPATIAL, TEMPORAL), torch.Generator().manual_seed(7)
    for layer, shape in ((SINGLE_FRAMES, (3, 3)), (OVER_FRAMES, (3, 1, 1))):
        channels = LAYOUT.unet.channels
        tensors[f"{layer}.lora_up.weight"] = torch.randn(channels, 2, *(1 for _ in shape), generator=generator)
        tensors[f"{layer}.lora_down.weight"] = 0.2 * torch.randn(2, channels, *shape, generator=generator)
    extended = host.apply_extension(model, extension)
    right = predict(comfy.sd.load_lora_for_models(extended, None, tensors, 0.7, 0)[0], 6)
    led = predict(comfy.sd.load_bypass_lora_for_models(extended, None, tensors, 0.7, 0)[0], 6)
    torch.testing.assert_close(led, right, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(predict(extended, 6), right, rtol=1e-2)


def _a_tenth_more(forward, x, *args, **kwargs):
    return 1.1 * forward(x, *args, **kwargs)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_partly_loaded_is_the_same(model, extension, predict, little_memory, strength):
    extended = with_lora(host.apply_extension(model, extension, strength), SPATIAL, TEMPORAL)
    whole = predict(extended, 6)
    comfy.model_management.unload_all_models()
    (positions,) = extended.get_additional_models()
    little_memory(positions.model_size())
    part = predict(extended, 6)
    for patcher in (extended, positions):
        assert patcher.model.model_lowvram
        assert patcher.loaded_size() < patcher.model_size() / 2
    assert torch.equal(part, whole)
