import pytest
import torch

from exvideo_core.sampling import latent_noise, linear_guidance, post_process
from exvideo_core.types import ExVideoError


def test_noise_is_the_hosts_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    noise = latent_noise(torch.zeros(3, 4, 2, 2), 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(noise, torch.randn(3, 4, 2, 2))


def test_frames_of_a_longer_clip_keep_their_noise():
    whole = latent_noise(torch.zeros(6, 4, 2, 2), 7)
    assert torch.equal(latent_noise(torch.zeros(3, 4, 2, 2), 7, [5, 2, 2]), whole[[5, 2, 2]])
    with pytest.raises(ExVideoError, match="are 3 frames, and their batch_index has 2 numbers"):
        latent_noise(torch.zeros(3, 4, 2, 2), 7, [5, 2])


def test_guidance_grows_from_the_first_frame_to_the_last():
    cond, uncond = torch.randn(5, 4, 2, 2), torch.randn(5, 4, 2, 2)
    guided = linear_guidance(1.0, 3.0)({"cond": cond, "uncond": uncond})
    for frame, scale in enumerate((1.0, 1.5, 2.0, 2.5, 3.0)):
        torch.testing.assert_close(guided[frame], uncond[frame] + scale * (cond[frame] - uncond[frame]))


def test_post_processing_matches_frames_to_the_clip():
    latents = torch.randn(6, 4, 8, 8) * torch.linspace(0.5, 2, 6).view(-1, 1, 1, 1) + torch.arange(6).view(-1, 1, 1, 1)
    done = post_process(latents, contrast=1.2)
    std, mean = torch.std_mean(latents)
    torch.testing.assert_close(done.mean((1, 2, 3)), (1.2 * mean).expand(6))
    torch.testing.assert_close(done.std((1, 2, 3)), (1.2 * std).expand(6))
    assert torch.equal(post_process(latents, normalize=False, contrast=2.0), latents * 2)


def test_a_frame_without_variation_is_no_nan():
    latents = torch.randn(3, 4, 8, 8)
    latents[1] = 0.5
    done = post_process(latents)
    assert done.isfinite().all()
    assert torch.equal(done[1], latents[1])
    assert post_process(torch.zeros(1, 4, 8, 8)).count_nonzero() == 0


def test_a_part_of_a_clip_is_guided_as_in_the_whole():
    cond, uncond = torch.randn(5, 4, 2, 2), torch.randn(5, 4, 2, 2)
    whole = linear_guidance(1.0, 3.0)({"cond": cond, "uncond": uncond})
    part = linear_guidance(1.0, 3.0, 2, 5)({"cond": cond[2:4], "uncond": uncond[2:4]})
    torch.testing.assert_close(part, whole[2:4])
