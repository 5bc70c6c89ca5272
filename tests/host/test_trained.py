"""The trained tiny model on a scene that nothing was trained on, and one clip of it learned by heart."""

import pytest
import torch
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.extension import new_extension
from exvideo_pack.exvideo_core.host.learning import Encoder, latent_scale, trainable
from exvideo_pack.exvideo_core.post_tuning.cache import Clip
from exvideo_pack.exvideo_core.post_tuning.motion import motion_bucket, motion_score
from exvideo_pack.exvideo_core.post_tuning.objective import loss, noise_like
from exvideo_pack.exvideo_core.post_tuning.recipe import Recipe
from exvideo_pack.exvideo_core.post_tuning.training import Training
from exvideo_pack.exvideo_core.schedule import sigmas
from exvideo_pack.exvideo_core.tiny import CHECKPOINT

from dev.tiny.autoencoder import SIDE
from dev.tiny.base import FRAMES
from dev.tiny.data import FPS, HELD_OUT, LONG
from dev.tiny.quality import quality
from dev.tiny.quick import quick_group_norms
from dev.tiny.scenes import render, scene
from dev.tiny.ways import Studio

WHAT = scene(HELD_OUT + 11)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder that holds the trained model, once there is a studio."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def studio(models):
    # In half the steps that the README's figures are from, and half their time.
    return Studio(models, window=64, steps=10)


@pytest.fixture(scope="module")
def extended(studio):
    """The extension's video of the scene."""
    with torch.inference_mode():
        return studio.extended(WHAT, SIDE)


def test_the_base_goes_on_as_the_scene_does(studio):
    assert float(quality(studio.base(WHAT, SIDE), WHAT).psnr.mean()) > 27


@pytest.mark.parametrize("more", [0, pytest.param(2, marks=pytest.mark.long)])
def test_the_extension_goes_on_where_the_base_is_lost(studio, extended, more):
    """In each scene, and well on the mean of them; over all of the README's, `python -m dev.tiny.reproduce` tells."""
    whats = [WHAT, *map(scene, range(HELD_OUT, HELD_OUT + more))]
    videos = [extended, *(studio.extended(what, SIDE) for what in whats[1:])]
    ours = [quality(video, what) for video, what in zip(videos, whats, strict=True)]
    theirs = [quality(studio.base_too_long(what, SIDE), what) for what in whats]

    def mean(found, measure, part):
        return float(torch.stack([getattr(each, measure)[part] for each in found]).mean())

    known, beyond = slice(FRAMES), slice(FRAMES, None)
    for each, other in zip(ours, theirs, strict=True):
        assert mean([each], "psnr", beyond) > mean([other], "psnr", beyond) + 3
        assert mean([each], "place", beyond) < mean([other], "place", beyond) / 3
    assert mean(ours, "psnr", known) > 28
    assert mean(ours, "psnr", beyond) > max(22, mean(theirs, "psnr", beyond) + 3)
    assert mean(ours, "place", beyond) < min(0.08, mean(theirs, "place", beyond) / 3)


def test_no_join_is_seen_in_a_chain(studio):
    """Where a segment goes on, no more changes than all but 5 % of the other frames do anyway."""
    half = LONG // 2  # of what the extension reaches, which takes half the time
    video = studio.long(WHAT, SIDE, half + 48, mode="chain", segment_frames=half, overlap=16)
    steps = video.diff(dim=0).abs().mean((1, 2, 3))[1:]
    join = half - 2
    others = torch.cat([steps[:join], steps[join + 1 :]])
    print(f"\nchange at the join {steps[join]:.4f}, exceeded by 5 % of the others {others.quantile(0.95):.4f}")
    assert steps[join] <= others.quantile(0.95)


def test_a_video_is_led_to_its_last_frame(studio, extended):
    """Before the last frame it is nearer to the right video than one that was not given it, and does not jump to it."""
    before = slice(100, LONG - 1)
    led, pinned = (studio.to_last(WHAT, SIDE, fade) for fade in (48, 0))
    psnr = [float(quality(video, WHAT).psnr[before].mean()) for video in (extended, led)]
    steps = [video.diff(dim=0).abs().mean((1, 2, 3)) for video in (led, pinned)]
    jumps = [float(each[-1] / each[:-1].quantile(0.95)) for each in steps]
    print(f"\nPSNR {psnr[0]:.1f} dB, led {psnr[1]:.1f}; last step by a large one {jumps[0]:.2f}, ", end="")
    print(f"only pinned {jumps[1]:.2f}")
    assert psnr[1] > psnr[0] + 1
    assert jumps[0] <= 1 < jumps[1]


class OneClip:
    """A clip that comes again and again."""

    identity, skipped = "one", ()

    def __init__(self, clip):
        self._clip = clip

    def __len__(self):
        return 1

    def __getitem__(self, number):
        return self._clip


def error(denoise, clip, scale):
    """The mean loss over the noise levels that hide the picture; at lower ones it is the noise that is asked for, and
    no clip tells that."""
    ids = {"fps": FPS, "motion_bucket_id": clip.motion_bucket_id, "augmentation_level": 0.0}
    clean, found = scale * clip.latents, []
    with torch.no_grad():
        for seed, sigma in enumerate(level for level in sigmas(12).tolist() if level > 1):
            noised = clean + sigma * noise_like(clean, seed)
            denoised = denoise(noised, torch.tensor([sigma]), clip.latents[:1], clip.token, [ids])
            found.append(float(loss(denoised, clean, sigma)))
    return sum(found) / len(found)


@pytest.mark.long
def test_a_clip_is_learned_by_heart(studio, models):
    """Post-tuned on it alone, from a new extension, the loss falls to a tenth."""
    model, clip_vision, vae = host.load_svd(models / CHECKPOINT)
    frames, scale = render(WHAT, 32, SIDE), latent_scale(model)
    latents, token = Encoder(clip_vision, vae)(frames)
    start = new_extension(host.base_weights(model), len(frames))
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        quick_group_norms(),
        trainable(model, start, None) as (denoise, parameters),
    ):
        clip = Clip(latents.clone(), token.clone(), motion_bucket(motion_score(frames)), "a.mp4")
        before = error(denoise, clip, scale)
        for recipe in (Recipe(250, 2e-3, scale=scale), Recipe(100, 3e-4, seed=1, scale=scale)):
            Training(denoise, parameters, start, OneClip(clip), recipe).run()
        after = error(denoise, clip, scale)
    print(f"\nloss on one clip of 32 frames: {before:.4f} before, {after:.4f} after")
    assert after < before / 10
