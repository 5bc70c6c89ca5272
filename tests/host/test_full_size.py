"""SVD at its own width, random weights: the patched host against the authors' code."""

import gc

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import psutil
import pytest
import torch
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.svd import UNET_PREFIX, SVDLayout
from exvideo_pack.exvideo_core.tiny import draw_checkpoint, draw_extension

NEEDED_GIB = 17


class OnlyUNet(SVDLayout):
    """The checkpoint without the parts that this comparison does not run."""

    def tensors(self):
        return {UNET_PREFIX + key: shape for key, shape in self.unet.tensors()}


@pytest.fixture(scope="module")
def full_size():
    comfy.model_management.unload_all_models()
    gc.collect()
    free = psutil.virtual_memory().available / 2**30
    if free < NEEDED_GIB:
        pytest.skip(f"a full-size SVD in float32 needs {NEEDED_GIB} GiB of memory, {free:.0f} are free")
    weights = draw_checkpoint(OnlyUNet())
    return weights, draw_extension(weights, 128)


@pytest.fixture(scope="module")
def base(full_size):
    weights, _ = full_size
    config = comfy.model_detection.model_config_from_unet(weights, UNET_PREFIX)
    config.set_inference_dtype(torch.float32, None)
    with torch.device("meta"):
        model = config.get_model(weights, UNET_PREFIX)
    # Both models share these tensors: there is room for one set.
    unet = {key.removeprefix(UNET_PREFIX): tensor for key, tensor in weights.items()}
    model.diffusion_model.load_state_dict(unet, assign=True)
    with torch.device("cpu"):
        model.model_sampling = comfy.model_base.model_sampling(config, comfy.model_base.ModelType.V_PREDICTION_EDM)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="module")
def oracle(full_size, reference):
    weights, extension = full_size
    module = reference("diffsynth.models.svd_unet")
    with torch.device("meta"):
        unet = module.SVDUNet(add_positional_conv=128)
    names = module.SVDUNetStateDictConverter().from_civitai(weights)
    unet.load_state_dict({**names, **extension.tensors}, assign=True)
    return unet.eval()


@pytest.mark.slow
@pytest.mark.parametrize("frames", [6, 26])
def test_the_patched_host_is_the_reference(base, oracle, full_size, frames):
    weights, extension = full_size
    checksums = {key: _checksum(tensor) for key, tensor in weights.items()}
    generator = torch.Generator().manual_seed(frames)
    x, image = (torch.randn(frames, 4, 16, 16, generator=generator) for _ in range(2))
    token = torch.randn(1, 1, 1024, generator=generator)
    ids, timestep = torch.tensor([[29.0, 127.0, 0.02]]), 0.4

    theirs = oracle(torch.cat([x, image], 1), timestep, token[0], ids)

    extended = host.apply_extension(base, extension)
    comfy.model_management.load_models_gpu([extended, *extended.get_additional_models()])
    wrappers = {"wrappers": extended.wrappers}
    ours = extended.model.diffusion_model(
        torch.cat([x, image], 1),
        torch.full((frames,), timestep),
        token.expand(frames, -1, -1),
        extended.model.encode_adm(fps=30, motion_bucket_id=127, augmentation_level=0.02).expand(frames, -1),
        transformer_options=wrappers,
        num_video_frames=frames,
    )
    error = ((ours - theirs).norm() / theirs.norm()).item()
    print(f"\nfull size, {frames} frames: relative error {error:.1e}, deviation of the output {theirs.std():.2f}")
    assert theirs.std() > 0.01
    assert error <= 2e-5

    comfy.model_management.unload_all_models()
    assert {key: _checksum(tensor) for key, tensor in weights.items()} == checksums
    state = base.model.diffusion_model.state_dict()
    assert all(state[key].data_ptr() == weights[UNET_PREFIX + key].data_ptr() for key in state)


def _checksum(tensor):
    return tensor.view(torch.int32).sum(dtype=torch.int64).item()
