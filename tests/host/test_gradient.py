"""The gradient of post-tuning inside the host, against the authors' code."""

import gc
from dataclasses import replace

import comfy.model_management
import pytest
import torch
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.post_tuning.objective import loss, noise_like
from exvideo_pack.exvideo_core.svd import UNET_PREFIX, SVDLayout, UNetLayout
from exvideo_pack.exvideo_core.tiny import LAYOUT, draw_checkpoint, draw_extension

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


@pytest.mark.parametrize(("budget", "level"), [(None, 100), (None, 500), (None, 900), (2**20, 500)])
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


def narrow_in(dtype):
    checkpoint = {key: tensor.to(dtype) for key, tensor in draw_checkpoint(LAYOUT, part=UNET_PREFIX).items()}
    return svd_model(checkpoint, torch.device("cpu"), dtype)
