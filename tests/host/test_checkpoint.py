"""The layout of SVD as we write it down, against the host's own classes; and a checkpoint of any width."""

import json
import os
import shutil
from pathlib import Path

import comfy.clip_vision
import comfy.ldm.models.autoencoder
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from comfy_extras.nodes_video_model import ImageOnlyCheckpointSave
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.host.patch import stored_weight
from exvideo_pack.exvideo_core.svd import (
    CLIP_PREFIX,
    UNET_PREFIX,
    CLIPLayout,
    SVDLayout,
    UNetLayout,
    VAELayout,
    read_layout,
)
from exvideo_pack.exvideo_core.tiny import CHECKPOINT, EXTENSION, LAYOUT, draw_checkpoint, draw_extension
from exvideo_pack.exvideo_core.types import ExVideoError
from safetensors.torch import save_file

FULL = SVDLayout()


def on_meta(layout):
    return {key: torch.empty(shape, device="meta") for key, shape in layout.tensors().items()}


def shapes(module):
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def test_the_host_takes_the_full_layout_for_svd():
    config = comfy.model_detection.model_config_from_unet(on_meta(FULL), UNET_PREFIX)
    assert type(config) is comfy.supported_models.SVD_img2vid
    assert FULL.unet.head == config.unet_config["num_head_channels"]
    with torch.device("meta"):
        model = config.get_model({}, UNET_PREFIX)
    assert shapes(model.diffusion_model) == dict(FULL.unet.tensors())


def test_the_full_autoencoder_is_the_hosts():
    vae = comfy.sd.VAE(sd={key: torch.zeros(shape) for key, shape in FULL.vae.tensors()})
    assert isinstance(vae.first_stage_model, comfy.ldm.models.autoencoder.AutoencodingEngine)
    assert shapes(vae.first_stage_model) == dict(FULL.vae.tensors())


def test_the_full_image_encoder_is_the_hosts():
    theirs = json.loads(Path(comfy.clip_vision.__file__).with_name("clip_vision_config_h.json").read_text())
    ours = FULL.clip.config()
    assert {key: theirs[key] for key in ours} == ours
    converted = comfy.clip_vision.convert_to_transformers(
        {key: tensor for key, tensor in on_meta(FULL).items() if key.startswith(CLIP_PREFIX)}, CLIP_PREFIX
    )
    with torch.device("meta"):
        model = comfy.clip_model.CLIPVisionModelProjection(theirs, None, None, comfy.ops.manual_cast)
    ignored = "vision_model.embeddings.position_ids"
    assert {k: tuple(t.shape) for k, t in converted.items() if k != ignored} == shapes(model)
    assert dict(FULL.clip.saved_tensors()) == shapes(model)


def test_the_tiny_checkpoint_arrives_whole(loaded, models):
    comfy.model_management.unload_all_models()
    model, clip_vision, vae = loaded
    assert shapes(model.model.diffusion_model) == dict(LAYOUT.unet.tensors())
    assert shapes(vae.first_stage_model) == dict(LAYOUT.vae.tensors())
    weights = comfy.utils.load_torch_file(str(models / CHECKPOINT))
    for key, tensor in model.model.diffusion_model.state_dict().items():
        assert torch.equal(tensor.float(), weights[UNET_PREFIX + key].float()), key
    for key, tensor in vae.first_stage_model.state_dict().items():
        assert torch.equal(tensor.float(), weights[f"first_stage_model.{key}"].float()), key
    q = weights[CLIP_PREFIX + "transformer.resblocks.1.attn.in_proj_weight"][: LAYOUT.clip.width]
    loaded_q = clip_vision.model.state_dict()["vision_model.encoder.layers.1.self_attn.q_proj.weight"]
    assert torch.equal(loaded_q.float(), q.float())


def test_another_width_loads_extends_and_runs(tmp_path, predict):
    layout = SVDLayout(
        UNetLayout(channels=64, multipliers=(1, 1, 2, 2), context=48),
        VAELayout(channels=32, multipliers=(1, 2, 2, 2)),
        CLIPLayout(width=160, layers=2, hidden=64, patch=28, image=112, projection=48),
    )
    weights = draw_checkpoint(layout)
    path = tmp_path / "other.safetensors"
    save_file(weights, path)
    assert read_layout(path.name, {k: tuple(t.shape) for k, t in weights.items()}) == layout
    model, clip_vision, vae = host.load_svd(path)
    out = predict(host.apply_extension(model, draw_extension(weights, 30)), frames=26)
    assert out.isfinite().all()
    assert vae.encode(torch.rand(1, 64, 64, 3)).shape == (1, 4, 8, 8)
    assert clip_vision.encode_image(torch.rand(1, 64, 64, 3)).image_embeds.shape == (1, 48)


@pytest.fixture
def saved(tmp_path, loaded):
    """A MODEL as the host's own node saves it, with the image encoder and the autoencoder: the file."""

    def call(model):
        node = ImageOnlyCheckpointSave()
        node.output_dir = str(tmp_path)
        node.save(model, *loaded[1:], "svd")
        (path,) = tmp_path.iterdir()
        return path

    return call


@pytest.fixture
def video(run):
    """Six frames of a MODEL, a CLIP_VISION and a VAE."""

    def call(model, clip_vision, vae):
        parts = {"clip_vision": clip_vision, "vae": vae, "width": 64, "height": 64, "num_frames": 6}
        picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
        positive, negative, latent, _ = run("ExVideoConditioning", init_image=picture, **parts)
        (samples,) = run("ExVideoSampler", model=model, positive=positive, negative=negative, latent=latent, steps=2)
        return run("ExVideoDecode", samples=samples, vae=vae)[0]

    return call


def test_what_the_host_saved_loads_and_makes_the_same_video(loaded, saved, video):
    assert torch.equal(video(*host.load_svd(saved(loaded[0]))), video(*loaded))


def test_an_extended_model_that_the_host_saved_is_a_base_of_the_extensions_weights(
    loaded, extension, saved, video, predict
):
    extended = host.apply_extension(loaded[0], extension)
    model, *parts = host.load_svd(saved(extended))
    weights = model.model.diffusion_model.state_dict()
    for key, weight in extension.replaced_weights():
        assert torch.equal(weights[key].float(), weight.float()), key
    # What SVD has no place for is not in a checkpoint: the extension brings it again.
    again = host.apply_extension(model, extension)
    assert torch.equal(video(again, *parts), video(extended, *loaded[1:]))
    assert not torch.equal(predict(model, 6), predict(extended, 6))


@pytest.mark.parametrize("name", ["text.safetensors", "sd15.ckpt"])
def test_files_of_other_kinds_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text("not tensors")
    with pytest.raises(ExVideoError, match=name):
        host.load_svd(path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "sd15.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)}, path)
    with pytest.raises(ExVideoError, match="but it is a checkpoint of another model"):
        host.load_svd(path)


@pytest.mark.parametrize("loader", ["ExVideoLoader", "ExVideoCheckpointLoader"])
def test_what_the_host_compares_of_an_extension_is_its_file(nodes, models, loader):
    """Of none, and of one that another node names, nothing is known; the node itself says what is missing."""

    def compared(exvideo_name):
        checkpoint = {} if loader == "ExVideoLoader" else {"ckpt_name": "any.safetensors", "memory": "auto"}
        return nodes[loader].fingerprint_inputs(exvideo_name=exvideo_name, **checkpoint)

    path = models / "exvideo" / "written_again.safetensors"
    shutil.copy(models / EXTENSION, path)
    before = compared(path.name)
    assert before
    assert compared(path.name) == before
    os.utime(path, ns=(0, 0))
    assert compared(path.name) != before
    path.unlink()
    for nothing in (path.name, None, "", "a\0b", "none (SVD alone)"):
        assert compared(nothing) == []


def test_what_the_host_compares_of_a_checkpoint_is_its_file(nodes, models):
    def compared():
        return nodes["ExVideoCheckpointLoader"].fingerprint_inputs(
            ckpt_name=path.name, exvideo_name=Path(EXTENSION).name, memory="auto"
        )

    path = models / "checkpoints" / "written_again.safetensors"
    shutil.copy(models / CHECKPOINT, path)
    before = compared()
    assert compared() == before
    os.utime(path, ns=(0, 0))
    assert compared() != before
    path.unlink()


def test_a_narrow_model_can_be_loaded_once_more_as_newer_hosts_do(loaded, models):
    """They train on a model whose weights stay where they are, and load it by what its loader left for that."""
    load, arguments = loaded[0].cached_patcher_init
    again = load(*arguments, disable_dynamic=True)
    assert type(again) is comfy.model_patcher.ModelPatcher
    assert again.model is not loaded[0].model
    with torch.inference_mode():
        for key, tensor in again.model.state_dict().items():
            assert torch.equal(tensor, stored_weight(loaded[0], key)), key


def test_a_narrow_autoencoder_is_in_the_precision_that_the_host_chose(models, monkeypatch):
    """And waits where the host has autoencoders wait."""
    monkeypatch.setattr(comfy.model_management, "vae_dtype", lambda *_args, **_kwargs: torch.bfloat16)
    monkeypatch.setattr(comfy.model_management, "vae_offload_device", lambda: torch.device("cpu:0"))
    vae = host.load_svd(models / CHECKPOINT)[2]
    assert {parameter.dtype for parameter in vae.first_stage_model.parameters()} == {torch.bfloat16}
    assert vae.patcher.offload_device == torch.device("cpu:0")


def test_the_host_chooses_a_precision_by_that_of_the_file(models, monkeypatch):
    asked, choose = [], comfy.model_management.unet_dtype

    def noted(**given):
        asked.append(given["weight_dtype"])
        return choose(**given)

    monkeypatch.setattr(comfy.model_management, "unet_dtype", noted)
    host.load_svd(models / CHECKPOINT)
    assert asked == [comfy.utils.load_torch_file(str(models / CHECKPOINT))[f"{UNET_PREFIX}out.2.weight"].dtype]
