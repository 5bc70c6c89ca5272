"""The nodes as the host runs them, with the host's own beside and between."""

import shutil
import sys

import pytest
import torch
from exvideo_pack.exvideo_core import conditioning, host
from exvideo_pack.exvideo_core.host import decoder
from exvideo_pack.exvideo_core.pinning import FADE
from exvideo_pack.exvideo_core.types import ClipShape, ExVideoError

# Where the host has frame interpolation models.
MODEL = ["model"] if host.interpolation_socket() else []
EXPECTED = {
    "ExVideoLoader": (["exvideo_name"], ["EXVIDEO"]),
    "ExVideoCheckpointLoader": (["ckpt_name", "exvideo_name", "memory"], ["MODEL", "CLIP_VISION", "VAE"]),
    "ExVideoInit": (["model", "num_frames"], ["EXVIDEO"]),
    "ExVideoApply": (["model", "exvideo", "strength", "memory"], ["MODEL"]),
    "ExVideoConditioning": (
        [
            "clip_vision", "vae", "init_image", "width", "height", "num_frames", "motion_bucket_id", "fps",
            "augmentation_level", "seed", "init_video", "last_image", "last_fade",
        ],
        ["CONDITIONING", "CONDITIONING", "LATENT", "FLOAT"],
    ),
    "ExVideoScheduler": (["model", "steps", "denoise"], ["SIGMAS"]),
    "ExVideoSampler": (
        [
            "model", "positive", "negative", "latent", "seed", "steps", "min_cfg", "max_cfg", "denoise", "normalize",
            "contrast",
        ],
        ["LATENT"],
    ),
    "ExVideoLongSampler": (
        [
            "model", "clip_vision", "vae", "init_image", "total_frames", "segment_frames", "overlap", "width", "height",
            "motion_bucket_id", "fps", "augmentation_level", "seed", "steps", "min_cfg", "max_cfg", "normalize",
            "contrast", "mode", "loop", "checkpoint_name", "token_from", "match_first", "denoise",
            "init_video",
        ],
        ["LATENT", "FLOAT"],
    ),
    "ExVideoDecode": (["samples", "vae", "window", "overlap", "loop", "centred_blend"], ["IMAGE"]),
    "ExVideoInterpolate": (["images", "multiplier", "fps", *MODEL, "loop"], ["IMAGE", "FLOAT"]),
    "ExVideoRender": (
        [
            "samples", "vae", "fps", "multiplier", "window", "overlap", "filename_prefix", "format", "crf", "audio",
            *MODEL, "keep_latents", "loop", "centred_blend",
        ],
        [],
    ),
    "ExVideoSave": (["images", "fps", "filename_prefix", "format", "crf", "audio"], []),
    "ExVideoPostTune": (
        [
            "model", "exvideo", "clip_vision", "vae", "videos", "steps", "learning_rate", "width", "height", "seed",
            "num_frames", "fps", "run_name", "memory", "save_every",
        ],
        ["EXVIDEO", "LOSS_MAP"],
    ),
    "ExVideoSaveExtension": (["exvideo", "filename_prefix", "precision"], []),
    "ExVideoDoctor": ([], ["STRING"]),
}  # fmt: skip


@pytest.fixture
def picture():
    return torch.rand(1, 80, 120, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(loaded, extension, run):
    return run("ExVideoApply", model=loaded[0], exvideo=extension)[0]


@pytest.fixture
def conditions(loaded, run, picture):
    _, clip_vision, vae = loaded
    size = {"width": 64, "height": 64, "num_frames": 6}
    return run("ExVideoConditioning", clip_vision=clip_vision, vae=vae, init_image=picture, **size)


def test_the_contract_of_ids_inputs_and_outputs(nodes):
    got = {}
    for node_id, node in nodes.items():
        schema = node.GET_SCHEMA()
        got[node_id] = ([i.id for i in schema.inputs], [o.get_io_type() for o in schema.outputs])
        assert schema.category == "ExVideo"
        assert all(each.tooltip for each in (*schema.inputs, *schema.outputs))
    assert got == EXPECTED


def test_loaders(run, models):
    names = {"exvideo_name": "exvideo_tiny_128f.safetensors"}
    (extension,) = run("ExVideoLoader", **names)
    assert extension.num_frames == 128
    model, clip_vision, vae = run("ExVideoCheckpointLoader", ckpt_name="exvideo_tiny_svd.safetensors", **names)
    assert model.get_additional_models()
    assert clip_vision.image_size == 224
    assert vae.first_stage_model is not None
    with pytest.raises(ExVideoError, match=r"no gone\.safetensors"):
        run("ExVideoLoader", exvideo_name="gone.safetensors")


def test_svd_alone_is_svd_as_it_is(run, models, nodes, predict, loaded):
    (name,) = (i for i in nodes["ExVideoCheckpointLoader"].GET_SCHEMA().inputs if i.id == "exvideo_name")
    assert name.options[-1] == "none (SVD alone)"
    model, _, _ = run(
        "ExVideoCheckpointLoader", ckpt_name="exvideo_tiny_svd.safetensors", exvideo_name="none (SVD alone)"
    )
    assert not model.get_additional_models()
    assert torch.equal(predict(model, 3), predict(loaded[0], 3))


def test_the_loader_hands_on_the_memory_it_is_given(run, models, extension, loaded, predict):
    names = {"ckpt_name": "exvideo_tiny_svd.safetensors", "exvideo_name": "exvideo_tiny_128f.safetensors"}
    model, _, _ = run("ExVideoCheckpointLoader", **names, memory="low")
    with pytest.raises(ExVideoError, match="memory"):
        run("ExVideoCheckpointLoader", **names, memory="none at all")
    (extended,) = run("ExVideoApply", model=loaded[0], exvideo=extension, memory="low")
    assert torch.equal(predict(model, 3), predict(extended, 3))


def test_svd_alone_asked_for_more_frames_than_it_knows_is_told_in_the_log(loaded, run, condition, caplog):
    run("ExVideoSampler", model=loaded[0], **condition(26), steps=1)
    assert "26 frames with SVD alone, which knows 25" in caplog.text


def test_svd_alone_is_asked_for_as_many_frames_as_it_knows_without_a_warning(loaded, run, condition, caplog):
    run("ExVideoSampler", model=loaded[0], steps=1, **condition(25))
    assert "with SVD alone" not in caplog.text


def test_conditioning(conditions, loaded, run, picture):
    positive, negative, latent, fps = conditions
    ((token, ids),), ((no_token, no_ids),) = positive, negative
    assert token.shape == no_token.shape == (1, 1, 64)
    assert token.any()
    assert not no_token.any()
    assert (ids["fps"], ids["motion_bucket_id"], ids["augmentation_level"]) == (30, 127, 0.02)
    assert ids["concat_latent_image"].shape == (1, 4, 8, 8)
    assert not no_ids["concat_latent_image"].any()
    assert latent["samples"].shape == (6, 4, 8, 8)
    assert not latent["samples"].any()
    assert fps == 30.0


def test_conditioning_from_a_video(loaded, run, picture):
    _, clip_vision, vae = loaded
    inputs = {"clip_vision": clip_vision, "vae": vae, "init_image": picture, "width": 64, "height": 64}
    video = torch.rand(11, 64, 64, 3)
    _, _, latent, _ = run("ExVideoConditioning", **inputs, num_frames=10, init_video=video)
    torch.testing.assert_close(latent["samples"], vae.encode(video[:10]), rtol=1e-4, atol=1e-4)
    with pytest.raises(ExVideoError, match="11 frames, but the video is to have 12"):
        run("ExVideoConditioning", **inputs, num_frames=12, init_video=video)


def test_a_video_is_resized_a_frame_at_a_time(loaded, run, picture, monkeypatch):
    """All of a long one, at the new size, would not fit into memory."""
    resized, theirs = [], conditioning.fit
    monkeypatch.setattr(conditioning, "fit", lambda images, shape: resized.append(len(images)) or theirs(images, shape))
    _, clip_vision, vae = loaded
    inputs = {"clip_vision": clip_vision, "vae": vae, "init_image": picture, "width": 64, "height": 64}
    video = torch.rand(5, 40, 32, 4)
    _, _, latent, _ = run("ExVideoConditioning", **inputs, num_frames=5, init_video=video)
    assert set(resized) == {1}
    expected = vae.encode(theirs(video[..., :3], ClipShape(5, 64, 64)))
    torch.testing.assert_close(latent["samples"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 33, 50, 4), (1, 33, 50, 1), (2, 33, 50, 3)])
def test_conditioning_takes_any_picture(loaded, run, shape):
    inputs = {"clip_vision": loaded[1], "vae": loaded[2], "width": 64, "height": 64, "num_frames": 2}
    positive, *_ = run("ExVideoConditioning", init_image=torch.rand(shape), **inputs)
    assert positive[0][0].isfinite().all()


def test_another_models_autoencoder_is_told(loaded, run, picture):
    import comfy.sd
    import comfy.taesd.taesd

    small = comfy.taesd.taesd.TAESD(latent_channels=16).state_dict()
    other = comfy.sd.VAE(sd=small)
    with pytest.raises(ExVideoError, match="latents of 4 channels"):
        run("ExVideoConditioning", clip_vision=loaded[1], vae=other, init_image=picture, width=64, height=64)


def test_another_models_image_encoder_is_told(model, conditions, run):
    positive, negative, latent, _ = conditions
    wider = [[torch.zeros(1, 1, positive[0][0].shape[-1] + 1), positive[0][1]]]
    with pytest.raises(ExVideoError, match="describes a picture by 65 numbers, but this model takes 64"):
        run("ExVideoSampler", model=model, positive=wider, negative=negative, latent=latent, steps=1)


def test_one_seed_one_result_and_no_global_state(model, conditions, run):
    positive, negative, latent, _ = conditions
    inputs = {"model": model, "positive": positive, "negative": negative, "latent": latent, "steps": 2}
    state = torch.get_rng_state()
    first, again, other = (run("ExVideoSampler", **inputs, seed=seed)[0]["samples"] for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert first.shape == (6, 4, 8, 8)
    assert not latent["samples"].any()


def test_the_sampler_is_the_hosts(model, conditions, run):
    """At denoise 1 the host's own KSampler with euler and karras makes the same video."""
    host_nodes = sys.modules.get("nodes") or __import__("nodes")
    positive, negative, latent, _ = conditions
    theirs = host_nodes.common_ksampler(model, 5, 3, 2.0, "euler", "karras", positive, negative, latent)[0]["samples"]
    inputs = {"model": model, "positive": positive, "negative": negative, "latent": latent}
    ours = run("ExVideoSampler", **inputs, seed=5, steps=3, normalize=False, contrast=1.0)[0]["samples"]
    assert (ours - theirs).norm() / theirs.norm() < 1e-3


def test_frames_taken_out_of_a_clip_are_sampled_as_by_the_host(model, conditions, run):
    """They get the noise that they had there, with ours as with KSampler."""
    host_nodes = sys.modules.get("nodes") or __import__("nodes")
    positive, negative, latent, _ = conditions
    (part,) = host_nodes.LatentFromBatch().frombatch(latent, 2, 3)
    theirs = host_nodes.common_ksampler(model, 5, 3, 2.0, "euler", "karras", positive, negative, part)[0]["samples"]
    inputs = {"model": model, "positive": positive, "negative": negative, "latent": part}
    ours = run("ExVideoSampler", **inputs, seed=5, steps=3, normalize=False, contrast=1.0)[0]["samples"]
    assert (ours - theirs).norm() / theirs.norm() < 1e-3


def test_guidance_per_frame_is_the_hosts(model, conditions, run):
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

    host_nodes = __import__("nodes")
    positive, negative, latent, _ = conditions
    (guided,) = VideoLinearCFGGuidance().patch(model, 1.5)
    theirs = host_nodes.common_ksampler(guided, 5, 3, 3.0, "euler", "karras", positive, negative, latent)[0]["samples"]
    inputs = {"model": model, "positive": positive, "negative": negative, "latent": latent, "seed": 5, "steps": 3}
    plain = {"normalize": False, "contrast": 1.0}
    ours = run("ExVideoSampler", **inputs, min_cfg=1.5, max_cfg=3.0, **plain)[0]["samples"]
    assert (ours - theirs).norm() / theirs.norm() < 1e-3
    # A last frame at 1 must not make the host skip the pass that the other frames need.
    falling = run("ExVideoSampler", **inputs, min_cfg=3.0, max_cfg=1.0, **plain)[0]["samples"]
    alone = run("ExVideoSampler", **inputs, min_cfg=1.0, max_cfg=1.0, **plain)[0]["samples"]
    assert not torch.allclose(falling[0], alone[0])


def test_another_nodes_guidance_that_is_replaced_is_told(model, conditions, run, caplog):
    positive, negative, latent, _ = conditions
    guided = model.clone()
    guided.set_model_sampler_cfg_function(lambda args: args["uncond"] + 1.5 * (args["cond"] - args["uncond"]))
    inputs = {"positive": positive, "negative": negative, "latent": latent, "steps": 1}
    (kept,) = run("ExVideoSampler", model=guided, **inputs)
    (plain,) = run("ExVideoSampler", model=model, **inputs, min_cfg=1.5, max_cfg=1.5)
    torch.testing.assert_close(kept["samples"], plain["samples"], rtol=1e-2, atol=1e-2)
    assert "guidance" not in caplog.text
    run("ExVideoSampler", model=guided, **inputs, min_cfg=1.0, max_cfg=3.0)
    assert "in the place of the guidance that another node has put on the model" in caplog.text


def test_numbers_that_are_no_longer_finite_are_told(model, conditions, run, caplog):
    positive, negative, latent, _ = conditions
    overflowing = model.clone()
    overflowing.set_model_sampler_post_cfg_function(lambda args: args["denoised"].half() * 1e6)
    run("ExVideoSampler", model=overflowing, positive=positive, negative=negative, latent=latent, steps=1)
    assert "no longer finite (NaN), and the video will be black" in caplog.text


def test_masked_frames_stay(model, conditions, run):
    positive, negative, latent, _ = conditions
    pinned = torch.randn(6, 4, 8, 8)
    mask = torch.ones(6, 1, 8, 8)
    mask[2] = 0
    inputs = {"model": model, "positive": positive, "negative": negative, "steps": 3, "contrast": 1.0}
    latent = {"samples": pinned, "noise_mask": mask}
    (out,) = run("ExVideoSampler", latent=latent, normalize=False, **inputs)
    torch.testing.assert_close(out["samples"][2], pinned[2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(out["samples"][3], pinned[3], atol=0.1)


def test_a_last_image_ends_the_video(loaded, model, run, picture):
    """Both ends come out as their pictures, whatever the contrast; what that looks like is in test_trained.py."""
    _, clip_vision, vae = loaded
    other = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(2))

    def sampled(**more):
        given = {"clip_vision": clip_vision, "vae": vae, "width": 64, "height": 64, "num_frames": 9}
        *guides, latent, _ = run("ExVideoConditioning", init_image=picture, last_image=other, **given, **more)
        inputs = dict(zip(("positive", "negative", "latent"), (*guides, latent), strict=True))
        return run("ExVideoSampler", model=model, steps=3, normalize=False, **inputs)[0]

    led, jumps = sampled(), sampled(last_fade=0)
    assert led["noise_mask"].amax((1, 2, 3)).tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0]
    ends = led["samples"][[0, -1]]
    torch.testing.assert_close(ends[1:], vae.encode(other[:1]), rtol=1e-4, atol=1e-4)
    assert (ends[:1] - ends[1:]).norm() > 1
    assert not torch.allclose(led["samples"][-2], jumps["samples"][-2])
    # The reference's way: pinned, then treated as all frames are.
    torch.testing.assert_close(jumps["samples"][-1:], 1.2 * vae.encode(other[:1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2])
def test_a_last_image_needs_frames_before_it(loaded, run, picture, frames):
    _, clip_vision, vae = loaded
    given = {"clip_vision": clip_vision, "vae": vae, "init_image": picture, "last_image": picture, "num_frames": frames}
    with pytest.raises(ExVideoError, match="at least 3 frames"):
        run("ExVideoConditioning", **given, width=64, height=64)


def test_sigmas_go_through_the_hosts_custom_sampler(model, conditions, run):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    positive, negative, latent, _ = conditions
    (sigmas,) = run("ExVideoScheduler", model=model, steps=3, denoise=0.6)
    assert len(sigmas) == 4
    sampler = comfy.samplers.sampler_object("euler")
    args = {"add_noise": True, "noise_seed": 5, "cfg": 2.0, "sampler": sampler, "sigmas": sigmas}
    result = SamplerCustom.execute(model, positive=positive, negative=negative, latent_image=latent, **args)
    theirs = result.args[0]["samples"]
    inputs = {"model": model, "positive": positive, "negative": negative, "latent": latent, "denoise": 0.6}
    (ours,) = run("ExVideoSampler", **inputs, seed=5, steps=3, normalize=False, contrast=1.0)
    assert torch.equal(ours["samples"], theirs)


def test_decode(loaded, run):
    vae = loaded[2]
    latents = torch.randn(10, 4, 8, 8)
    (frames,) = run("ExVideoDecode", samples={"samples": latents}, vae=vae)
    assert frames.shape == (10, 64, 64, 3)
    assert 0 <= frames.min() < frames.max() <= 1
    # One window holds a short clip, so there is nothing to blend: it is the host's own decode.
    (whole,) = run("ExVideoDecode", samples={"samples": latents[:8]}, vae=vae)
    torch.testing.assert_close(whole, vae.decode(latents[:8]), rtol=1e-4, atol=1e-4)


def test_the_sampler_refuses_an_empty_clip(model, conditions, run):
    positive, negative, _, _ = conditions
    empty = {"samples": torch.zeros(0, 4, 8, 8)}
    with pytest.raises(ExVideoError, match=r"got \[0, 4, 8, 8\]"):
        run("ExVideoSampler", model=model, positive=positive, negative=negative, latent=empty)


def test_decode_refuses_other_latents(loaded, run):
    with pytest.raises(ExVideoError, match=r"got \[1, 16, 8, 8\]"):
        run("ExVideoDecode", samples={"samples": torch.zeros(1, 16, 8, 8)}, vae=loaded[2])


def test_a_folder_of_extensions_may_be_tidied_away(nodes, tmp_path):
    """As the one in the output folder, while the host runs and remembers it."""
    import folder_paths

    folder = tmp_path / "exvideo"
    folder.mkdir()
    (folder / "mine.safetensors").touch()
    paths, suffixes = folder_paths.folder_names_and_paths["exvideo"]
    folder_paths.folder_names_and_paths["exvideo"] = ([*paths, str(folder)], suffixes)
    try:
        assert "mine.safetensors" in host.model_names("exvideo")
        shutil.rmtree(folder)
        assert "mine.safetensors" not in host.model_names("exvideo")
        nodes["ExVideoLoader"].GET_SCHEMA()
    finally:
        folder_paths.folder_names_and_paths["exvideo"] = (paths, suffixes)


def test_memory_for_a_loop_is_planned_by_its_windows(loaded, run, monkeypatch):
    """Which go round more than once where they are longer than the clip."""
    planned = []
    plan = decoder.plan_decoding
    monkeypatch.setattr(decoder, "plan_decoding", lambda frames, *given: planned.append(frames) or plan(frames, *given))
    for loop in (False, True):
        samples = {"samples": torch.zeros(3, 4, 8, 8)}
        run("ExVideoDecode", samples=samples, vae=loaded[2], window=9, overlap=4, loop=loop)
    assert set(planned[: len(planned) // 2]) == {3}
    assert set(planned[len(planned) // 2 :]) == {9}


def test_a_choice_that_comes_through_a_link_is_not_refused_before_it_is_known(nodes):
    assert nodes["ExVideoRender"].validate_inputs(keep_latents=None) is True
    assert "auto, always, never" in nodes["ExVideoRender"].validate_inputs(keep_latents="yes")


@pytest.mark.parametrize("node", ["ExVideoDecode", "ExVideoRender"])
def test_decode_refuses_other_autoencoders(run, node):
    import comfy.ldm.wan.vae
    import comfy.sd
    import comfy.taesd.taesd

    pictures = comfy.taesd.taesd.TAESD(latent_channels=16).state_dict()
    videos = comfy.ldm.wan.vae.WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True]).state_dict()
    for weights, told in [(pictures, "takes 16 and 2"), (videos, "takes 16 and 3")]:
        with pytest.raises(ExVideoError, match=told):
            run(node, samples={"samples": torch.zeros(2, 4, 8, 8)}, vae=comfy.sd.VAE(sd=weights))


def test_conditioning_hands_on_over_how_many_frames_the_video_is_led(loaded, run, picture):
    _, clip_vision, vae = loaded
    given = {"clip_vision": clip_vision, "vae": vae, "width": 64, "height": 64, "num_frames": 9}
    latent = run("ExVideoConditioning", init_image=picture, last_image=picture, last_fade=3, **given)[2]
    assert latent[FADE] == 3
