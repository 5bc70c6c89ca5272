"""SVD at its own widths, random weights: every stage against the authors' code.

What takes minutes is marked `long` and left out of `make test`; `make parity` runs all of it.
"""

import gc

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import psutil
import pytest
import torch
from exvideo_pack.exvideo_core import budget, conditioning, host
from exvideo_pack.exvideo_core.svd import CLIP_PREFIX, UNET_PREFIX, VAE_PREFIX, SVDLayout
from exvideo_pack.exvideo_core.tiny import draw_checkpoint, draw_extension

from dev import reference
from dev.inside import svd_model
from dev.noise import drawn

IDS, TIMESTEP = (29, 127, 0.02), 0.4
SEED, STEPS = 3, 5

pytestmark = [pytest.mark.slow, pytest.mark.alone]
long = pytest.mark.long


def draw(prefix, gib):
    """Random weights of one part, or a skipped test where memory is short."""
    comfy.model_management.unload_all_models()
    gc.collect()
    free = psutil.virtual_memory().available / 2**30
    if free < gib:
        pytest.skip(f"{prefix}* of a full-size SVD in float32 needs {gib} GiB of memory, {free:.0f} are free")
    return draw_checkpoint(SVDLayout(), part=prefix)


def test_decode(parity, run):
    weights = draw(VAE_PREFIX, 5)
    vae = comfy.sd.VAE(sd={key.removeprefix(VAE_PREFIX): tensor for key, tensor in weights.items()})
    vae.first_stage_model.float()
    vae.vae_dtype = torch.float32
    latents = drawn(13, 4, 8, 8)
    (ours,) = run("ExVideoDecode", samples={"samples": latents}, vae=vae)
    theirs = reference.vae_decoder(weights).decode_video(0.18215 * latents).permute(1, 2, 3, 0)
    parity("decode in windows of 8, full size", "13 frames, 8×8", ours, (theirs / 2 + 0.5).clamp(0, 1), 1e-4)

    image = torch.rand(1, 96, 64, 3, generator=torch.Generator().manual_seed(4))
    encoded = reference.vae_encoder(weights)(image.movedim(-1, 1) * 2 - 1) / 0.18215
    parity("image latent, full size", "64×96", vae.encode(image), encoded, 1e-4)


@long
def test_the_image_token(parity):
    # The host keeps this encoder in half precision, so only what that can hold is comparable.
    weights = {key: tensor.half() for key, tensor in draw(CLIP_PREFIX, 10).items()}
    converted = comfy.clip_vision.convert_to_transformers(dict(weights), CLIP_PREFIX)
    clip_vision = comfy.clip_vision.load_clipvision_from_sd(converted)
    authors = reference.image_encoder({key: t.float() for key, t in weights.items()}, SVDLayout().clip)
    image = torch.rand(1, 300, 451, 3, generator=torch.Generator().manual_seed(4))
    pixels = (
        reference.pipeline_module()
        .SVDCLIPImageProcessor()
        .resize_with_antialiasing(image.movedim(-1, 1) * 2 - 1, (224, 224))
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (clip_vision.image_mean, clip_vision.image_std))
    ours = host.encode_clip(clip_vision, lambda *size: conditioning.clip_pixels(image, *size))
    parity("image token, full size", "451×300", ours[0], authors(((pixels + 1) / 2 - mean) / std), 1e-4)


@pytest.fixture(scope="module")
def full_size():
    weights = draw(UNET_PREFIX, 17)
    return weights, draw_extension(weights, 128)


@pytest.fixture(scope="module")
def base(full_size):
    return svd_model(full_size[0], torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def extended(base, full_size):
    return host.apply_extension(base, full_size[1])


@pytest.fixture(scope="module")
def authors(full_size):
    return reference.unet(*full_size)


@pytest.fixture(scope="module", autouse=True)
def _gives_the_memory_back():
    yield
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [
        (7, 16, 16),
        *(pytest.param(*size, marks=long) for size in [
            (2, 16, 16), (25, 16, 16), (26, 16, 16), (64, 16, 16), (128, 16, 16), (2, 16, 24), (26, 16, 24),
            (6, 24, 40), (26, 24, 40),
        ]),
    ],
)  # fmt: skip
def test_the_patched_unet(extended, authors, run_unet, parity, frames, height, width):
    x, image = drawn(frames, 4, height, width), drawn(1, 4, height, width, seed=1).expand(frames, -1, -1, -1)
    token = drawn(1, 1, 1024, seed=2)
    cond = authors(torch.cat([x, image], 1), TIMESTEP, token[0], torch.tensor([IDS]))
    uncond = authors(torch.cat([x, image * 0], 1), TIMESTEP, token[0] * 0, torch.tensor([IDS]))

    both = run_unet(extended, [x, x], [image, image * 0], [token, token * 0], IDS, TIMESTEP)
    alone = run_unet(extended, [x], [image], [token], IDS, TIMESTEP)
    size = f"{frames} frames, {height}×{width}"
    parity("UNet, full size", f"{size}, cond + uncond together", both, torch.cat([cond, uncond]), 2e-5)
    parity("UNet, full size", f"{size}, cond alone", alone, cond, 2e-5)


@pytest.mark.parametrize("size", [(8, 32, 32), *(pytest.param(s, marks=long) for s in [(26, 16, 16), (128, 16, 16)])])
def test_chunks_change_nothing(extended, run_unet, parity, monkeypatch, size):
    """In the least that a plan gives a pass to work in, against all at once: most often to the last bit."""
    frames, *side = size
    inputs = [drawn(frames, 4, *side)], [drawn(frames, 4, *side, seed=1)], [drawn(1, 1, 1024, seed=2)], IDS, TIMESTEP
    least = min(least for least, _ in (*budget.BUDGETS.values(), (budget.CPU_BUDGET, 0)))
    results = []
    for working in (1 << 40, least):
        monkeypatch.setattr(budget, "CPU_BUDGET", working)
        results.append(run_unet(extended, *inputs))
    whole, in_chunks = results
    parity("chunks, full size, against all at once", f"{frames} frames, {side[0]}×{side[1]}", in_chunks, whole, 1e-6)


def test_the_base_is_as_it_was(base, extended, full_size, run_unet):
    weights, _ = full_size
    before = {key: _checksum(tensor) for key, tensor in weights.items()}
    x, token = drawn(2, 4, 16, 16), drawn(1, 1, 1024)
    run_unet(extended, [x], [x], [token], IDS, TIMESTEP)
    comfy.model_management.unload_all_models()
    assert {key: _checksum(tensor) for key, tensor in weights.items()} == before
    state = base.model.diffusion_model.state_dict()
    # Not copied either: the same memory as before.
    assert all(state[key].data_ptr() == weights[UNET_PREFIX + key].data_ptr() for key in state)


@long
@pytest.mark.parametrize(
    ("name", "denoise", "min_cfg", "max_cfg", "pinned"),
    [
        ("denoise 1", 1.0, 2.0, 2.0, ()),
        ("denoise 1, guidance 1 to 3", 1.0, 1.0, 3.0, ()),
        ("denoise 0.5", 0.5, 2.0, 2.0, ()),
        ("2 pinned frames, the others", 1.0, 2.0, 2.0, (0, 3)),
    ],
)
def test_the_sampler(extended, authors, run, parity, name, denoise, min_cfg, max_cfg, pinned):
    """The authors' loop by their own scheduler and guidance, against ExVideoSampler."""
    frames, free = 5, [i for i in range(5) if i not in pinned]
    clip, image, token = drawn(frames, 4, 16, 16, seed=7), drawn(1, 4, 16, 16, seed=1), drawn(1, 1, 1024, seed=2)
    start = clip if denoise < 1 or pinned else torch.zeros_like(clip)
    conditions = {"fps": 30, "motion_bucket_id": 127, "augmentation_level": 0.02}
    positive = [[token, {**conditions, "concat_latent_image": image}]]
    negative = [[token * 0, {**conditions, "concat_latent_image": image * 0}]]
    latent = {"samples": start}
    if pinned:
        mask = torch.ones(frames, 1, 16, 16)
        mask[list(pinned)] = 0
        latent["noise_mask"] = mask
    (ours,) = run(
        "ExVideoSampler", model=extended, positive=positive, negative=negative, latent=latent, seed=SEED, steps=STEPS,
        min_cfg=min_cfg, max_cfg=max_cfg, denoise=denoise, normalize=False, contrast=1.0,
    )  # fmt: skip
    ours = extended.model.latent_format.process_in(ours["samples"])

    scheduler = reference.scheduler()
    scheduler.set_timesteps(STEPS, denoising_strength=denoise)
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(SEED))
    scaled, repeated = extended.model.latent_format.process_in(clip), image.expand(frames, -1, -1, -1)
    scales = torch.linspace(min_cfg, max_cfg, frames).view(-1, 1, 1, 1)
    theirs = noise.clone() if denoise == 1 else scheduler.add_noise(scaled, noise, scheduler.timesteps[0])
    for timestep in scheduler.timesteps:
        for i in pinned:
            theirs[i] = scheduler.add_noise(scaled[i], noise[i], timestep)
        cond = authors(torch.cat([theirs, repeated], 1), timestep, token[0], torch.tensor([IDS]))
        uncond = authors(torch.cat([theirs, repeated * 0], 1), timestep, token[0] * 0, torch.tensor([IDS]))
        theirs = scheduler.step(uncond + scales * (cond - uncond), timestep, theirs)
    parity("sampler, 5 steps, full size", name, ours[free], theirs[free], 1e-3)


def _checksum(tensor):
    return tensor.view(torch.int32).sum(dtype=torch.int64).item()
