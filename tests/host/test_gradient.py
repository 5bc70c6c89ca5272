"""The gradient of post-tuning inside the host, against the authors' code."""

import gc
import inspect
from dataclasses import replace

import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.budget import RELEARNED_MAPS
from exvideo_pack.exvideo_core.extension import new_extension
from exvideo_pack.exvideo_core.post_tuning.objective import loss, noise_like
from exvideo_pack.exvideo_core.svd import UNET_PREFIX, SVDLayout, UNetLayout
from exvideo_pack.exvideo_core.tiny import LAYOUT, draw_checkpoint, draw_extension
from exvideo_pack.exvideo_core.types import ExVideoError

from benchmarks import fake
from dev import reference
from dev.inside import svd_model

SCALE = 0.18215


@pytest.fixture
def learning():
    """As the loop runs: the host has nodes in inference mode, in which nothing learns."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def batch(frames, height, width, context, seed=0):
    """Latents of the autoencoder, a token, and the ids that the authors train with."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(frames, 4, height, width, generator=generator) / SCALE
    token = torch.randn(1, 1, context, generator=generator)
    return latents, token, {"fps": 30, "motion_bucket_id": 90, "augmentation_level": 0}


def the_authors_gradient(checkpoint, extension, layout, latents, token, ids, level):
    """By their UNet, their noise, their step and their weight, as their training script puts them together."""
    network, scheduler = reference.unet(checkpoint, extension, layout.head), reference.scheduler()
    scheduler.set_timesteps(1000)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in extension.tensors)
    timestep, scaled = scheduler.timesteps[level], SCALE * latents
    noised = scheduler.add_noise(scaled, noise_like(latents, 5), timestep)
    image = latents[:1].expand_as(latents)
    ids = torch.tensor([[ids["fps"] - 1, ids["motion_bucket_id"], ids["augmentation_level"]]])
    predicted = network(torch.cat([noised, image], 1), timestep, token[0], ids)
    denoised = scheduler.step(predicted, timestep, noised.clone(), to_final=True)
    error = torch.nn.functional.mse_loss(denoised, 1.01 * scaled) * scheduler.training_weight(timestep)
    error.backward()
    return error.item(), {name: p.grad for name, p in network.named_parameters() if p.requires_grad}


def our_gradient(model, extension, budget, latents, token, ids, level):
    sigma = float(reference_sigmas()[level])
    with host.trainable(model, extension, budget) as (denoise, parameters):
        noised = SCALE * latents + sigma * noise_like(latents, 5)
        error = loss(denoise(noised, torch.tensor([sigma]), latents[:1], token, [ids]), SCALE * latents, sigma)
        error.backward()
        return error.item(), {key: parameter.grad for key, parameter in parameters.items()}


def reference_sigmas():
    scheduler = reference.scheduler()
    scheduler.set_timesteps(1000)
    return scheduler.sigmas


def apart(ours, theirs):
    """The largest relative difference of a tensor's gradient.

    Some have none: queries and keys for a single token, and a bias that a normalisation takes away again. There the
    authors' code computes what rounding leaves.
    """
    nothing = 1e-7 * max(float(tensor.norm()) for tensor in theirs.values())
    ours = {key: torch.zeros_like(tensor) if ours[key] is None else ours[key] for key, tensor in theirs.items()}
    for key, tensor in theirs.items():
        assert (float(tensor.norm()) < nothing) == (float(ours[key].norm()) < nothing), key
    return max(
        float((ours[key] - tensor).norm() / tensor.norm())
        for key, tensor in theirs.items()
        if float(tensor.norm()) >= nothing
    )


@pytest.mark.parametrize(("budget", "level"), [(None, 100), (None, 500), (None, 900), (2**22, 500)])
def test_the_gradient_is_the_authors(learning, budget, level):
    checkpoint = draw_checkpoint(LAYOUT, part=UNET_PREFIX)
    compare_gradients(checkpoint, LAYOUT.unet, 27, 16, 24, budget, level)


@pytest.mark.slow
def test_the_gradient_is_the_authors_at_svd_s_width(learning):
    """All 16 blocks with 320 and 640 channels and heads of 64; those of 1280 have the same parts."""
    layout = replace(SVDLayout(), unet=UNetLayout(multipliers=(1, 2, 1, 1)))
    checkpoint = draw_checkpoint(layout, part=UNET_PREFIX)
    compare_gradients(checkpoint, layout.unet, 3, 16, 16, 2**26, 500)


@pytest.mark.alone
@pytest.mark.long
def test_the_gradient_is_the_authors_at_svd_s_full_size(learning):
    layout = SVDLayout()
    compare_gradients(draw_checkpoint(layout, part=UNET_PREFIX), layout.unet, 2, 16, 16, 2**26, 500)


def compare_gradients(checkpoint, layout, frames, height, width, budget, level):
    extension = draw_extension(checkpoint, 32)
    clip = batch(frames, height, width, layout.context)
    # The model is gone before the authors' is made: at full size there is no memory for both.
    ours = our_gradient(svd_model(checkpoint, torch.device("cpu"), torch.float32), extension, budget, *clip, level)
    comfy.model_management.unload_all_models()
    gc.collect()
    theirs = the_authors_gradient(checkpoint, extension, layout, *clip, level)
    assert len(theirs[1]) == 528
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert apart(ours[1], theirs[1]) < 1e-4


def test_half_precision_learns(loaded, extension, learning):
    """With the model in bfloat16: parameters stay float32, and their gradient is near that of float32."""
    model = narrow_in(torch.bfloat16)
    plain = narrow_in(torch.float32)
    clip = batch(5, 8, 8, LAYOUT.unet.context)
    half, full = (our_gradient(m, extension, None, *clip, 500) for m in (model, plain))
    assert half[0] == pytest.approx(full[0], rel=0.05)
    one, other = (torch.cat([g.flatten() for g in gradient[1].values() if g is not None]) for gradient in (half, full))
    assert one.dtype == torch.float32
    assert float(torch.nn.functional.cosine_similarity(one, other, 0)) > 0.98


@pytest.mark.parametrize("budget", [None, 2**22])
def test_videos_of_a_batch_are_learned_each_by_itself(loaded, extension, learning, budget):
    """With a noise level, a picture, a token and ids of its own."""
    clips, sigmas = [batch(5, 8, 8, LAYOUT.unet.context, seed) for seed in (0, 1)], torch.tensor([1.0, 50.0])
    latents, tokens, ids = zip(*clips, strict=True)
    ids[1]["motion_bucket_id"] = 3
    with host.trainable(loaded[0], extension, budget) as (denoise, _):
        firsts = torch.stack([each[0] for each in latents])
        both = denoise(SCALE * torch.cat(latents), sigmas, firsts, torch.cat(tokens), ids)
        alone = [
            denoise(SCALE * each, sigmas[n, None], firsts[n, None], tokens[n], ids[n : n + 1])
            for n, each in enumerate(latents)
        ]
        assert both.requires_grad
        torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_within_a_budget_only_the_inputs_of_layers_are_kept(loaded, extension, learning, monkeypatch):
    """As the plan of a training reckons it, beside parameters and their gradients; without one, everything is kept."""
    monkeypatch.setattr(fake, "DEVICE", "cpu")
    clip, one_map, working = batch(9, 8, 16, LAYOUT.unet.context), LAYOUT.unet.channels * 9 * 8 * 16 * 4, 2**20
    trained = 4 * sum(tensor.numel() for tensor in extension.tensors.values())
    peaks = []
    for given in (None, working):
        with fake.LivePeak([*loaded[0].model.parameters(), *extension.tensors.values()]) as live:
            our_gradient(loaded[0], extension, given, *clip, 500)
        peaks.append(live.peak - 2 * trained)
    assert peaks[1] <= RELEARNED_MAPS * one_map + working
    assert peaks[0] > 10 * peaks[1]


def narrow_in(dtype):
    checkpoint = {key: tensor.to(dtype) for key, tensor in draw_checkpoint(LAYOUT, part=UNET_PREFIX).items()}
    return svd_model(checkpoint, torch.device("cpu"), dtype)


@pytest.fixture
def novram(monkeypatch):
    """Tell the host that it has a device of its own, which weights reach one after the other, as they are needed."""
    management = comfy.model_management
    management.unload_all_models()
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    yield
    monkeypatch.undo()
    management.unload_all_models()


def test_patches_that_wait_in_main_memory_do_not_hide_what_is_trained(loaded, extension, predict, learning, novram):
    """Those of an extension that is applied, which would take the place of the trained weights at each pass."""
    applied = host.apply_extension(loaded[0], extension)
    with torch.inference_mode():
        predict(applied, 2)
    assert applied.model.model_lowvram
    start = new_extension(host.base_weights(loaded[0]), 8)
    clip = batch(5, 8, 8, LAYOUT.unet.context)
    ours = our_gradient(applied, start, None, *clip, 500)
    comfy.model_management.unload_all_models()
    theirs = our_gradient(loaded[0], start, None, *clip, 500)
    assert ours[0] == theirs[0]
    for key, gradient in theirs[1].items():
        assert (gradient is None) == (ours[1][key] is None), key
        assert gradient is None or torch.equal(ours[1][key], gradient), key


def test_whatever_else_is_on_the_device_leaves_it(loaded, extension):
    """A second name of the CPU passes for that device. There is room enough, but not to be reckoned with."""
    device, management = torch.device("cpu:0"), comfy.model_management
    model, other = loaded[0].clone(), loaded[2].patcher.clone()
    model.load_device = other.load_device = device
    management.load_models_gpu([other])
    with host.trainable(model, extension, None):
        assert management.loaded_models() == [model]
    management.free_memory(1e30, device)


class Streaming(comfy.model_patcher.ModelPatcher):
    """Says of itself what newer hosts' own says that brings weights to a GPU as they are needed; no CPU has it."""

    def is_dynamic(self):
        return True


KNOWN = "disable_dynamic" in inspect.signature(comfy.model_patcher.ModelPatcher.clone).parameters


@pytest.mark.parametrize(
    "can_be_loaded_again",
    [False, pytest.param(True, marks=pytest.mark.skipif(not KNOWN, reason="newer hosts have it"))],
)
def test_weights_that_come_and_go_are_not_trained_on(loaded, extension, learning, can_be_loaded_again):
    """But a model of the same weights that stay, with the same patches; where there can be none, that is told."""
    key = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
    plain = loaded[0].clone()
    plain.add_patches({key: (torch.ones_like(loaded[0].model.state_dict()[key]),)})
    streaming = plain.clone()
    streaming.__class__ = Streaming
    clip = batch(5, 8, 8, LAYOUT.unet.context)
    if can_be_loaded_again:
        with host.trainable(streaming, extension, None) as (denoise, _):
            assert denoise.unet is not streaming.model.diffusion_model
        assert (
            our_gradient(streaming, extension, None, *clip, 500)[0]
            == our_gradient(plain, extension, None, *clip, 500)[0]
        )
    else:
        streaming.cached_patcher_init = None
        with pytest.raises(ExVideoError, match=r"stays on its device, .*: load it by .* --disable-dynamic-vram"):
            our_gradient(streaming, extension, None, *clip, 500)
