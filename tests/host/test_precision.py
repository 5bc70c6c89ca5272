"""Half precision and less: the extended model runs in all that the host offers, with an error that is told."""

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import pytest
import torch
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.extension import Extension, new_extension
from exvideo_pack.exvideo_core.post_tuning.recipe import Recipe
from exvideo_pack.exvideo_core.svd import UNET_PREFIX
from exvideo_pack.exvideo_core.tiny import CHECKPOINT, LAYOUT
from exvideo_pack.exvideo_core.types import ExVideoError

FLOAT8 = torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("stored", "computed", "bound"),
    [
        (torch.float16, torch.float32, 1e-6),
        (torch.float16, torch.float16, 5e-3),
        (torch.bfloat16, torch.float32, 2e-2),
        (torch.bfloat16, torch.bfloat16, 4e-2),
        (FLOAT8, torch.float32, 2e-1),
        (FLOAT8, torch.float16, 2e-1),
        (FLOAT8, torch.bfloat16, 2e-1),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_every_precision_runs(load, extension, predict, parity, stored, computed, bound):
    exact = predict(host.apply_extension(load(torch.float32, torch.float32), extension), 6)
    model = load(stored, computed)
    got = predict(host.apply_extension(model, extension), 6)
    name = f"{stored} weights, {computed} arithmetic".replace("torch.", "")
    parity(f"{name}, against float32", "6 frames", got.float(), exact.float(), bound)
    # The base has the same error: it is the precision's, not the extension's.
    base, exact_base = predict(model, 6), predict(load(torch.float32, torch.float32), 6)
    base_error = ((base - exact_base).norm() / exact_base.norm()).item()
    assert ((got - exact).norm() / exact.norm()).item() < 3 * base_error + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extensions_of_every_precision_apply_to_every_model(load, extension, predict, dtype):
    cast = Extension({key: tensor.to(dtype) for key, tensor in extension.tensors.items()}, extension.num_frames)
    exact = predict(host.apply_extension(load(torch.float32, torch.float32), extension), 6)
    for stored in (torch.float32, torch.float16, torch.bfloat16):
        got = predict(host.apply_extension(load(stored, stored), cast), 6)
        assert ((got - exact).norm() / exact.norm()).item() < 4e-2


@pytest.fixture(scope="module")
def scaled(models):
    """The tiny model with its linear layers in float8, each with a scale, as the host loads such files."""
    weights = comfy.utils.load_torch_file(str(models / CHECKPOINT))
    tensors = {key: tensor for key, tensor in weights.items() if key.startswith(UNET_PREFIX)}
    for key, tensor in list(tensors.items()):
        if tensor.ndim == 2:
            scale = tensor.float().abs().max() / torch.finfo(FLOAT8).max
            tensors[key] = (tensor.float() / scale).to(FLOAT8)
            tensors[key.replace("weight", "scale_weight")] = scale
    mark = torch.zeros(2, dtype=FLOAT8)
    newer = hasattr(comfy.utils, "convert_old_quants")
    if newer:
        tensors, _ = comfy.utils.convert_old_quants({**tensors, f"{UNET_PREFIX}scaled_fp8": mark}, UNET_PREFIX)
    config = comfy.supported_models.SVD_img2vid(comfy.model_detection.detect_unet_config(tensors, UNET_PREFIX))
    config.unet_config["num_head_channels"] = LAYOUT.unet.head
    if newer:
        config.quant_config = comfy.utils.detect_layer_quantization(tensors, UNET_PREFIX)
    else:
        config.scaled_fp8 = mark.dtype
    config.set_inference_dtype(torch.float16, torch.float32)
    with torch.inference_mode():
        model = config.get_model(tensors, UNET_PREFIX)
        model.load_model_weights(tensors, UNET_PREFIX)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def test_a_new_extension_of_scaled_weights_has_their_values(scaled, loaded, extension, predict):
    weights, read = host.base_weights(loaded[0]), host.base_weights(scaled)
    base = predict(scaled, 6)
    extended = host.apply_extension(scaled, extension)
    assert not torch.allclose(predict(extended, 6), base, atol=0.05)
    # Whether an extension is patched in at the moment, or not.
    for place in (read, host.base_weights(extended)):
        for key, _ in extension.replaced_weights():
            got, expected = place(key), weights(key).float()
            assert got.element_size() > 1
            torch.testing.assert_close(got.float(), expected, rtol=2**-4, atol=2e-3 * expected.abs().max().item())
    new = predict(host.apply_extension(scaled, new_extension(read, 40)), 6)
    assert ((new - base).norm() / base.norm()).item() < 1e-2


def test_a_model_of_scaled_weights_is_told_from_others_whatever_is_loaded(scaled, loaded, extension, predict):
    extended = host.apply_extension(scaled, extension)
    identities = [host.model_identity(model) for model in (scaled, extended, loaded[0])]
    assert len(set(identities)) == 3
    predict(extended, 2)
    assert [host.model_identity(model) for model in (scaled, extended, loaded[0])] == identities
    comfy.model_management.unload_all_models()


def test_a_new_extension_of_float8_weights_is_in_half_precision(load):
    model = load(FLOAT8, torch.float32)
    read, stored = host.base_weights(model), model.model.diffusion_model.state_dict()
    key = "output_blocks.6.1.time_stack.0.attn1.to_q.weight"
    assert stored[key].dtype == FLOAT8
    assert read(key).dtype == torch.float16
    assert torch.equal(read(key).float(), stored[key].float())


def test_a_model_of_scaled_weights_is_not_trained(scaled, loaded, extension, tmp_path):
    """Its scales would be taken for the parameters' own, and what was learned would be wrong without a word."""
    _, clip_vision, vae = loaded
    told = r"those of the connected one are quantised .* svd_xt\.safetensors"
    with pytest.raises(ExVideoError, match=told):
        host.post_tune(
            scaled, extension, clip_vision, vae, tmp_path / "videos", (64, 64), Recipe(1), tmp_path / "run", 4
        )
    assert not (tmp_path / "run").exists()
    with pytest.raises(ExVideoError, match=told), host.trainable(scaled, extension, None):
        pass
