import pytest
import torch

from dev import reference
from exvideo_core.conditioning import augment, clip_pixels, first_image, fit, rgb
from exvideo_core.types import ClipShape, ExVideoError

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_common_kind_of_image_becomes_rgb(channels):
    images = torch.rand(2, 5, 6, channels)
    assert rgb(images).shape == (2, 5, 6, 3)
    assert torch.equal(rgb(images)[..., 0], images[..., 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pictures_in_half_precision_can_be_resized(dtype):
    image = torch.rand(1, 20, 30, 3)
    halved = fit(rgb(image.to(dtype)), ClipShape(1, 16, 16))
    torch.testing.assert_close(halved, fit(image, ClipShape(1, 16, 16)), atol=0.02, rtol=0)


@pytest.mark.parametrize("shape", [(5, 6, 3), (0, 5, 6, 3), (1, 5, 6, 2), (1, 5, 6, 5)])
def test_other_tensors_are_refused(shape):
    with pytest.raises(ExVideoError, match="Expected an image"):
        rgb(torch.zeros(shape))


def test_of_a_batch_the_first_is_used_and_said_so(caplog):
    batch = torch.rand(3, 4, 4, 3)
    assert torch.equal(first_image(batch), batch[:1])
    assert "the first of the 3" in caplog.text


def test_fit_crops_the_centre():
    # A wide picture: red, green, blue thirds. A square clip keeps the green centre.
    image = torch.zeros(1, 30, 90, 3)
    for third in range(3):
        image[:, :, 30 * third : 30 * (third + 1), third] = 1
    fitted = fit(image, ClipShape(1, 16, 16))
    assert fitted.shape == (1, 16, 16, 3)
    assert fitted[..., 1].mean() > 0.95
    assert torch.equal(fit(image, ClipShape(1, 30, 90)), image)


def test_fit_does_not_alias():
    # One-pixel stripes must become grey when shrunk eightfold, not stripes of chance.
    image = (torch.arange(512) % 2).float().view(1, 1, 512, 1).expand(1, 512, 512, 3)
    assert fit(image, ClipShape(1, 64, 64))[:, 8:-8, 8:-8].std() < 0.01


@pytest.mark.parametrize("size", [(300, 451), (128, 128), (224, 224), (640, 200), (1000, 1500)])
def test_the_image_for_clip_is_the_references(size):
    processor = reference.pipeline_module().SVDCLIPImageProcessor()
    image = torch.rand(1, *size, 3)
    theirs = processor.resize_with_antialiasing(image.movedim(-1, 1) * 2 - 1, (224, 224))
    ours = clip_pixels(image, 224, [0.5] * 3, [0.5] * 3)
    assert (ours - theirs).abs().max() < 1e-4 * 2


def test_clip_pixels_are_normalised():
    pixels = clip_pixels(torch.tensor(MEAN).expand(1, 9, 9, 3), 14, MEAN, STD)
    assert pixels.shape == (1, 3, 14, 14)
    assert pixels.abs().max() < 1e-5


def test_augmentation_is_seeded_and_of_the_stated_strength():
    image = torch.rand(1, 64, 64, 3)
    state = torch.get_rng_state()
    noisy = augment(image, 0.5, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noisy, augment(image, 0.5, 3))
    assert not torch.equal(noisy, augment(image, 0.5, 4))
    # The level counts where pixels run from −1 to 1.
    assert ((noisy - image) * 2).std() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(augment(image, 0.0, 3), image)


def test_clip_shape_rounds_down_to_whole_cells():
    assert ClipShape.of_pixels(2, 579, 1030) == ClipShape(2, 576, 1024)
    assert ClipShape(2, 576, 1024).latent == (2, 4, 72, 128)
    for frames, height, width in [(0, 64, 64), (1, 7, 64)]:
        with pytest.raises(ExVideoError):
            ClipShape.of_pixels(frames, height, width)


def test_fit_crops_the_centre_of_a_high_picture():
    image = torch.zeros(1, 90, 30, 3)
    for third in range(3):
        image[:, 30 * third : 30 * (third + 1), :, third] = 1
    assert fit(image, ClipShape(1, 16, 16))[..., 1].mean() > 0.95


def test_an_enlarged_picture_has_no_values_beyond_white_and_black():
    image = (torch.arange(16) // 4 % 2).float().view(1, 1, 16, 1).expand(1, 16, 16, 3)
    fitted = fit(image, ClipShape(1, 64, 64))
    assert (fitted.min(), fitted.max()) == (0, 1)


def test_a_video_narrower_than_a_latent_cell_is_refused():
    with pytest.raises(ExVideoError, match="at least 8×8 pixels, got 7×64"):
        ClipShape.of_pixels(1, 64, 7)
