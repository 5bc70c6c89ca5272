"""Every stage against the authors' code, on a narrow model of SVD's topology: the same weights, the same numbers.

`test_full_size.py` does the same at SVD's own widths, where that is affordable.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance
from exvideo_pack.exvideo_core import host, sampling
from exvideo_pack.exvideo_core.extension import Extension, read_extension
from exvideo_pack.exvideo_core.svd import CLIP_PREFIX, UNET_PREFIX, VAELayout
from exvideo_pack.exvideo_core.tiny import LAYOUT, draw_checkpoint, draw_extension
from PIL import Image
from safetensors.torch import save_file

from dev import reference
from dev.noise import drawn

NARROW = replace(LAYOUT, vae=VAELayout(channels=32))
UNET_BOUND, SAMPLER_BOUND, IMAGE_BOUND = 2e-5, 1e-3, 1e-4
SIZE = {"width": 128, "height": 192}
FRAMES, STEPS, SEED = 9, 5, 3
AS_IS = {"normalize": False, "contrast": 1.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint and an extension on disk, every tensor of which matters."""
    folder = tmp_path_factory.mktemp("parity")
    generator = torch.Generator().manual_seed(11)

    def shaken(key, tensor):
        if tensor.ndim == 1 and not key.startswith(CLIP_PREFIX):
            # Norms, biases and mixing factors away from where they start, so that none can be mistaken for another.
            return tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
        if key.startswith(UNET_PREFIX) and tensor.ndim > 2:
            # SiLU shrinks what goes into the convolutions; this keeps what comes out of order 1.
            return 1.6 * tensor
        # The host keeps its image encoder in half precision, so only what that can hold is comparable.
        return tensor.half().float() if key.startswith(CLIP_PREFIX) else tensor

    checkpoint = {key: shaken(key, tensor) for key, tensor in draw_checkpoint(NARROW).items()}
    extension = {key: shaken(key, tensor) for key, tensor in draw_extension(checkpoint, 128).tensors.items()}
    save_file(checkpoint, folder / "svd.safetensors")
    save_file(extension, folder / "exvideo.safetensors")
    return folder, checkpoint, Extension(extension, 128)


@pytest.fixture(scope="module")
def authors(files):
    _, checkpoint, extension = files
    return reference.pipeline(checkpoint, extension, NARROW)


@pytest.fixture(scope="module")
def ours(files):
    folder, *_ = files
    with torch.inference_mode():
        model, clip_vision, vae = host.load_svd(folder / "svd.safetensors")
        return host.apply_extension(model, read_extension(folder / "exvideo.safetensors")), clip_vision, vae


def photo(width, height, seed=0):
    """A picture of 8 bits, smooth and with edges, as PIL has it and as ComfyUI loads it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    image.paste((250, 10, 90), (width // 5, height // 4, width // 2, height // 2))
    return image, torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(frames, 16, 16) for frames in (2, 25, 26, 64, 128)] + [(2, 16, 24), (26, 16, 24), (2, 24, 40), (26, 24, 40)],
)
def test_the_patched_unet(ours, authors, run_unet, parity, frames, height, width):
    x, image = drawn(frames, 4, height, width), drawn(1, 4, height, width, seed=1).expand(frames, -1, -1, -1)
    token, ids, timestep = drawn(1, 1, NARROW.unet.context, seed=2), (29, 127, 0.02), 0.4
    cond = authors.unet(torch.cat([x, image], 1), timestep, token[0], torch.tensor([ids]))
    uncond = authors.unet(torch.cat([x, image * 0], 1), timestep, token[0] * 0, torch.tensor([ids]))

    both = run_unet(ours[0], [x, x], [image, image * 0], [token, token * 0], ids, timestep)
    alone = run_unet(ours[0], [x], [image], [token], ids, timestep)
    size = f"{frames} frames, {height}×{width}"
    parity("UNet, narrow", f"{size}, cond + uncond together", both, torch.cat([cond, uncond]), UNET_BOUND)
    parity("UNet, narrow", f"{size}, cond alone", alone, cond, UNET_BOUND)


@pytest.mark.parametrize(("steps", "denoise"), [(1, 1.0), (25, 1.0), (50, 1.0), (25, 0.5), (7, 0.13), (30, 0.01)])
def test_sigmas(ours, authors, run, steps, denoise):
    (sigmas,) = run("ExVideoScheduler", model=ours[0], steps=steps, denoise=denoise)
    authors.scheduler.set_timesteps(steps, denoising_strength=denoise)
    torch.testing.assert_close(sigmas[:-1], authors.scheduler.sigmas, rtol=1e-6, atol=0)
    assert sigmas[-1] == 0


@pytest.mark.parametrize(("width", "height"), [(128, 128), (192, 128), (128, 256)])
@pytest.mark.parametrize("level", [0.0, 0.02, 0.5])
def test_conditioning(ours, authors, run, parity, width, height, level):
    _, clip_vision, vae = ours
    image, pixels = photo(width, height)
    positive, negative, _, _ = run(
        "ExVideoConditioning", clip_vision=clip_vision, vae=vae, init_image=pixels, width=width, height=height,
        num_frames=3, fps=17, motion_bucket_id=42, augmentation_level=level, seed=SEED,
    )  # fmt: skip
    ((token, ids),), ((no_token, no_ids),) = positive, negative
    stage = f"{width}×{height}, augmentation {level}"
    parity("image token, narrow", stage, token[0], authors.encode_image_with_clip(image), IMAGE_BOUND)
    noised = authors.encode_image_with_vae(image, level, seed=SEED)
    parity("image latent, narrow", stage, ids["concat_latent_image"], noised, IMAGE_BOUND)
    assert not no_token.any()
    assert not no_ids["concat_latent_image"].any()
    # What the UNet is told: frames a second − 1, motion, augmentation, embedded in 256 channels each.
    embedded = ours[0].model.encode_adm(**{k: v for k, v in ids.items() if k != "concat_latent_image"})
    theirs = authors.unet.add_time_proj(torch.tensor([16.0, 42.0, level])).view(1, -1)
    torch.testing.assert_close(embedded, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["RGBA", "L", "batch"])
def test_conditioning_by_other_pictures_is_that_by_their_colours(ours, run, caplog, mode):
    _, clip_vision, vae = ours
    image, pixels = photo(128, 128)
    given, plain = pixels, pixels
    if mode == "RGBA":
        given = torch.cat([pixels, torch.rand(1, 128, 128, 1)], -1)
    if mode == "L":
        given = torch.from_numpy(np.asarray(image.convert("L")).astype(np.float32) / 255)[None, :, :, None]
        plain = given.expand(-1, -1, -1, 3)
    if mode == "batch":
        given = torch.cat([pixels, photo(128, 128, seed=5)[1]])
    inputs = {"clip_vision": clip_vision, "vae": vae, "width": 128, "height": 128, "num_frames": 2}
    ((token, ids),), *_ = run("ExVideoConditioning", init_image=given, **inputs)
    ((expected, expected_ids),), *_ = run("ExVideoConditioning", init_image=plain, **inputs)
    assert torch.equal(token, expected)
    assert torch.equal(ids["concat_latent_image"], expected_ids["concat_latent_image"])
    assert ("the first of the 2" in caplog.text) == (mode == "batch")


@pytest.fixture
def chain(ours, authors, run):
    """The authors' pipeline and our nodes on one picture: latents as sampled, latents as finished, frames.

    `pinned` are frames by number that stay as given; `video` is what a denoise below 1 starts from.
    """
    model, clip_vision, vae = ours
    image, pixels = photo(SIZE["width"], SIZE["height"])

    def theirs(video, pinned, min_cfg, max_cfg, denoise):
        seen = {}
        process = type(authors).post_process_latents

        def listen(latents, **options):
            seen["sampled"] = latents.clone()
            seen["finished"] = process(authors, latents, **options)
            return seen["finished"]

        decode = authors.vae_decoder.decode_video

        def watch(latents, **_):
            seen["frames"] = decode(latents)
            return seen["frames"]

        authors.post_process_latents, authors.vae_decoder.decode_video = listen, watch
        try:
            authors(
                image, video, [f for _, f in pinned], [i for i, _ in pinned], min_cfg, max_cfg, denoise, FRAMES,
                **SIZE, fps=30, seed=SEED, num_inference_steps=STEPS, progress_bar_cmd=lambda x: x,
            )  # fmt: skip
        finally:
            del authors.post_process_latents, authors.vae_decoder.decode_video
        frames = ((seen["frames"] + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0)
        return seen["sampled"], seen["finished"], frames

    def mine(video, pinned, min_cfg, max_cfg, denoise):
        def tensor(images):
            return torch.cat([torch.from_numpy(np.asarray(i).astype(np.float32) / 255)[None] for i in images])

        positive, negative, latent, _ = run(
            "ExVideoConditioning", clip_vision=clip_vision, vae=vae, init_image=pixels, **SIZE, num_frames=FRAMES,
            seed=SEED, **({"init_video": tensor(video)} if video else {}),
        )  # fmt: skip
        if pinned:
            mask = torch.ones(FRAMES, 1, 1, 1)
            samples = latent["samples"].clone()
            for i, frame in pinned:
                samples[i], mask[i] = vae.encode(tensor([frame]))[0], 0
            latent = {"samples": samples, "noise_mask": mask.expand(-1, -1, *samples.shape[-2:])}
        inputs = {"model": model, "positive": positive, "negative": negative, "latent": latent, "seed": SEED}
        inputs |= {"steps": STEPS, "min_cfg": min_cfg, "max_cfg": max_cfg, "denoise": denoise}
        (sampled,) = run("ExVideoSampler", **inputs, **AS_IS)
        # A LATENT is on the scale of the autoencoder, the authors keep theirs on that of the UNet.
        scaled = model.model.latent_format.process_in
        if pinned:  # whose test compares what was sampled, and no more
            return scaled(sampled["samples"]), None, None, inputs
        (finished,) = run("ExVideoSampler", **inputs)
        (frames,) = run("ExVideoDecode", samples=finished, vae=vae)
        return scaled(sampled["samples"]), scaled(finished["samples"]), frames, inputs

    def both(video=None, pinned=(), min_cfg=2.0, max_cfg=2.0, denoise=1.0):
        args = (video, pinned, min_cfg, max_cfg, denoise)
        return theirs(*args), mine(*args)

    return both


def clip(frames):
    return [photo(SIZE["width"], SIZE["height"], seed)[0] for seed in range(frames)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("denoise 1", {}, marks=pytest.mark.long),
        ("denoise 1, guidance 1 to 3", {"min_cfg": 1.0, "max_cfg": 3.0}),
        pytest.param("denoise 0.5 of a video", {"denoise": 0.5, "video": clip(FRAMES)}, marks=pytest.mark.long),
        ("denoise 0.5, guidance 3 to 1.5", {"denoise": 0.5, "video": clip(FRAMES), "min_cfg": 3.0, "max_cfg": 1.5}),
    ],
)
def test_from_picture_to_frames(chain, parity, name, options):
    (sampled, finished, frames), (our_sampled, our_finished, our_frames, inputs) = chain(**options)
    parity("sampler, 5 steps, narrow", name, our_sampled, sampled, SAMPLER_BOUND)
    parity("sampler, normalised and contrasted, narrow", name, our_finished, finished, SAMPLER_BOUND)
    parity("from picture to frames, narrow", name, our_frames, frames, SAMPLER_BOUND)
    if inputs["denoise"] == 1:
        # What users of SVD have in their graphs: KSampler, with guidance that grows along the clip.
        (guided,) = VideoLinearCFGGuidance().patch(inputs["model"], inputs["min_cfg"])
        conditions = inputs["positive"], inputs["negative"], inputs["latent"]
        (out,) = __import__("nodes").common_ksampler(
            guided, SEED, STEPS, inputs["max_cfg"], "euler", "karras", *conditions
        )
        on_the_unets_scale = inputs["model"].model.latent_format.process_in(out["samples"])
        parity("KSampler + VideoLinearCFGGuidance, narrow", name, on_the_unets_scale, sampled, SAMPLER_BOUND)


def test_pinned_frames(chain, parity):
    pinned = [(0, clip(8)[6]), (4, clip(8)[7])]
    (sampled, _, _), (our_sampled, _, _, inputs) = chain(pinned=pinned)
    free = [i for i in range(FRAMES) if i not in (0, 4)]
    case = "2 pinned frames, the others"
    parity("sampler, 5 steps, narrow", case, our_sampled[free], sampled[free], SAMPLER_BOUND)
    kept = inputs["model"].model.latent_format.process_in(inputs["latent"]["samples"])
    # The authors let the last step move a pinned frame; here it ends as it was given.
    torch.testing.assert_close(our_sampled[[0, 4]], kept[[0, 4]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("contrast", [1.0, 1.2])
def test_normalisation_and_contrast(authors, parity, normalize, contrast):
    latents = drawn(6, 4, 8, 8) * drawn(6, 1, 1, 1, seed=1) + drawn(6, 4, 1, 1, seed=2)
    theirs = authors.post_process_latents(latents, post_normalize=normalize, contrast_enhance_scale=contrast)
    name = f"normalize {normalize}, contrast {contrast}"
    parity("normalisation and contrast", name, sampling.post_process(latents, normalize, contrast), theirs, 1e-6)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (7, 8, 8), (8, 8, 8), (9, 16, 24), (21, 8, 8)])
def test_decode(ours, authors, run, parity, frames, height, width):
    latents = 0.18215 * drawn(frames, 4, height, width)
    (got,) = run("ExVideoDecode", samples={"samples": latents / 0.18215}, vae=ours[2])
    theirs = authors.vae_decoder.decode_video(latents).permute(1, 2, 3, 0)
    case = f"{frames} frames, {height}×{width}"
    parity("decode in windows of 8, narrow", case, got, (theirs / 2 + 0.5).clamp(0, 1), IMAGE_BOUND)
