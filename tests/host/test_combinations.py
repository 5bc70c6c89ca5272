"""The extended model among everything else that ComfyUI does with a model."""

import random

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy.sd
import numpy as np
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import (
    CFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_freelunch import FreeU
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.extension import LAYERS, Extension, extension_shapes, new_extension
from exvideo_pack.exvideo_core.layers import PositionLayers
from exvideo_pack.exvideo_core.tiny import LAYOUT

from dev.videos import draw_video


@pytest.fixture
def model(loaded):
    return loaded[0]


@pytest.fixture
def new(model):
    """An extension that changes nothing on short clips: whatever then differs from the base is a defect."""
    return new_extension(host.base_weights(model), 40)


@pytest.fixture
def conditions(condition):
    return condition(6)


# --- clones --------------------------------------------------------------------------------------------------


def test_two_clones_of_one_base_interleaved(model, extension, predict):
    """Each is patched and unpatched again and again; none leaves a trace on another."""
    models = {
        "base": model,
        "full": host.apply_extension(model, extension),
        "half": host.apply_extension(model, extension, 0.5),
    }
    models["clone of half"] = models["half"].clone()
    first = {name: predict(each, 6) for name, each in models.items()}
    for _ in range(2):
        for name in ("half", "full", "base", "clone of half", "full", "base"):
            assert torch.equal(predict(models[name], 6), first[name]), name
    assert torch.equal(first["half"], first["clone of half"])
    assert not torch.allclose(first["half"], first["full"])
    assert not torch.allclose(first["half"], first["base"])


# --- patches and controls ------------------------------------------------------------------------------------


def test_free_u_and_attention_patches_act_as_on_the_base(model, new, extension, predict):
    calls = []

    def patched(target):
        (clone,) = FreeU().patch(target, 1.1, 1.2, 0.9, 0.2)

        def note(kind):
            def patch(*tensors):
                *tensors, options = tensors
                calls.append((kind, options["block"], options["block_index"], tensors[0].shape))
                return tensors[0] * 0.9 if kind.endswith("output") else (tensors[0] * 1.1, *tensors[1:])

            return patch

        clone.set_model_attn1_patch(note("attn1"))
        clone.set_model_attn2_patch(note("attn2"))
        clone.set_model_attn1_output_patch(note("attn1 output"))
        clone.set_model_attn2_output_patch(note("attn2 output"))
        return clone

    on_the_base = predict(patched(model), 6)
    expected, calls[:] = list(calls), []
    assert len(expected) > 16 * 2 * 4 - 1
    assert torch.equal(predict(patched(host.apply_extension(model, new)), 6), on_the_base)
    assert calls == expected
    assert not torch.allclose(on_the_base, predict(model, 6))
    # Patched before or after, it is the same.
    assert torch.equal(
        predict(host.apply_extension(patched(model), extension), 6),
        predict(patched(host.apply_extension(model, extension)), 6),
    )


def test_replaced_attention_acts_as_on_the_base(model, new, predict):
    def without_mixing(q, k, v, options):
        return v

    def patched(target):
        clone = target.clone()
        for place, number in (("input", 4), ("middle", 0), ("output", 5)):
            clone.set_model_attn1_replace(without_mixing, place, number)
        return clone

    expected = predict(patched(model), 6)
    assert torch.equal(predict(patched(host.apply_extension(model, new)), 6), expected)
    assert not torch.allclose(expected, predict(model, 6))


PASSED_BY = (
    "norm", "time_mixer", "transformer_blocks.0", "transformer_blocks.0.attn2",
    "time_stack.0", "time_stack.0.ff", "time_stack.0.ff.net.0", "time_stack.0.ff_in.net.0",
)  # fmt: skip
"""Modules of a transformer that chunks work through without asking for them as a whole."""


@pytest.mark.parametrize("name", PASSED_BY)
def test_what_others_hook_to_a_module_is_asked_as_on_the_base(model, new, predict, name):
    unet = model.model.diffusion_model
    hooked = unet.input_blocks[1][1].get_submodule(name)
    plain = predict(model, 3)
    handle = hooked.register_forward_hook(lambda module, inputs, output: output * 0.5)
    try:
        on_the_base = predict(model, 3)
        assert not torch.allclose(on_the_base, plain, atol=1e-4)
        torch.testing.assert_close(predict(host.apply_extension(model, new), 3), on_the_base, rtol=1e-4, atol=1e-4)
    finally:
        handle.remove()


def test_what_others_hook_to_the_last_layers_is_asked_as_on_the_base(model, new, predict):
    handle = model.model.diffusion_model.out[0].register_forward_hook(lambda module, inputs, output: output * 0.5)
    try:
        on_the_base = predict(model, 3)
        torch.testing.assert_close(predict(host.apply_extension(model, new), 3), on_the_base, rtol=1e-4, atol=1e-4)
    finally:
        handle.remove()
    assert not torch.allclose(on_the_base, predict(model, 3), atol=1e-4)


@pytest.mark.parametrize("by_name", [False, True])
def test_what_a_control_net_adds_is_there_for_a_second_try(by_name):
    """When memory has run out: the host takes it out of lists."""
    doing, seen = host.memory.Memory("auto", 32), []

    def fail_once(x, control):
        doing(x)
        seen.append(control["output"].pop())
        if len(seen) == 1:
            raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")

    x, control = torch.empty(8, 8, 8, 8), {"output": ["added"]}
    if by_name:
        doing.retrying(fail_once, x, control=control)
    else:
        doing.retrying(fail_once, x, control)
    assert seen == ["added", "added"]


def control_net():
    """A ControlNet of the width of the tiny UNet, on single frames: the core has none made for SVD."""
    generator = torch.Generator().manual_seed(9)
    network = comfy.cldm.cldm.ControlNet(
        image_size=32, in_channels=4, model_channels=LAYOUT.unet.channels, hint_channels=3, num_res_blocks=[2] * 4,
        channel_mult=(1, 2, 4, 4), use_spatial_transformer=True, transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_middle=1, context_dim=LAYOUT.unet.context, num_head_channels=32, legacy=False,
        operations=comfy.ops.manual_cast,
    )  # fmt: skip
    for tensor in network.parameters():
        spread = 0.5 * tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
        tensor.data = spread * torch.randn(tensor.shape, generator=generator)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    return control.set_cond_hint(torch.rand(6, 3, 64, 64, generator=generator), 0.8, (0.0, 1.0))


def test_a_control_net_acts_as_on_the_base(model, new, extension, conditions, run):
    def sample(target, control):
        inputs = dict(conditions, steps=2)
        if control:
            net = control_net()
            for side in ("positive", "negative"):
                inputs[side] = [[token, {**ids, "control": net, "control_apply_to_uncond": False}]
                                for token, ids in inputs[side]]  # fmt: skip
        return run("ExVideoSampler", model=target, **inputs)[0]["samples"]

    on_the_base = sample(model, control=True)
    assert on_the_base.isfinite().all()
    assert not torch.allclose(on_the_base, sample(model, control=False))
    assert torch.equal(sample(host.apply_extension(model, new), control=True), on_the_base)
    extended = host.apply_extension(model, extension)
    assert not torch.allclose(sample(extended, control=True), sample(extended, control=False))


def test_a_patch_in_the_attention_may_look_from_one_prediction_to_the_other(model, extension, conditions, run):
    """As NAG does on newer hosts, which does nothing where it is not shown both."""
    seen = []

    def note(out, options):
        seen.append(options["cond_or_uncond"])
        return out

    extended = host.apply_extension(model, extension)
    (plain,) = run("ExVideoSampler", model=extended, **conditions, steps=1)
    patched = extended.clone()
    patched.set_model_attn1_output_patch(note)
    (same,) = run("ExVideoSampler", model=patched, **conditions, steps=1)
    assert {tuple(sorted(both)) for both in seen} == {(0, 1)}
    torch.testing.assert_close(same["samples"], plain["samples"], rtol=1e-3, atol=1e-3)


# --- sampling ------------------------------------------------------------------------------------------------


def test_the_hosts_custom_sampler_with_its_guider(model, extension, conditions, run):
    extended = host.apply_extension(model, extension)
    (sigmas,) = run("ExVideoScheduler", model=extended, steps=3)
    guider = CFGGuider.execute(extended, conditions["positive"], conditions["negative"], 2.0).args[0]
    noise, sampler = RandomNoise.execute(5).args[0], KSamplerSelect.execute("euler").args[0]
    theirs = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, conditions["latent"]).args[0]
    (ours,) = run("ExVideoSampler", model=extended, **conditions, steps=3, seed=5, normalize=False, contrast=1.0)
    assert torch.equal(ours["samples"], theirs["samples"])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "uni_pc", "lcm"])
def test_other_samplers_run(model, extension, conditions, sampler):
    extended = host.apply_extension(model, extension)
    sides = conditions["positive"], conditions["negative"], conditions["latent"]
    (out,) = __import__("nodes").common_ksampler(extended, 1, 3, 2.0, sampler, "karras", *sides)
    assert out["samples"].isfinite().all()


def test_latents_go_to_disk_and_back(model, extension, conditions, run, tmp_path, monkeypatch):
    import folder_paths

    import nodes as host_nodes

    (sampled,) = run("ExVideoSampler", model=host.apply_extension(model, extension), **conditions, steps=1)
    for folder in ("output_directory", "input_directory"):
        monkeypatch.setattr(folder_paths, folder, str(tmp_path))
    host_nodes.SaveLatent().save(sampled, "clip")
    (saved,) = tmp_path.glob("*.latent")
    (loaded,) = host_nodes.LoadLatent().load(saved.name)
    assert torch.equal(loaded["samples"], sampled["samples"])


def test_no_node_reads_or_changes_global_random_state(nodes, loaded, models, extension, conditions, tmp_path,
                                                      monkeypatch):  # fmt: skip
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    model, clip_vision, vae = loaded
    extended = host.apply_extension(model, extension)
    draw_video(tmp_path / "videos" / "a.mp4", source="testsrc=size=64x64:rate=30", seconds=0.1)
    latent, names = conditions["latent"], {"exvideo_name": "exvideo_tiny_128f.safetensors"}
    inputs = {
        "ExVideoLoader": names,
        "ExVideoCheckpointLoader": {"ckpt_name": "exvideo_tiny_svd.safetensors", **names},
        "ExVideoInit": {"model": model},
        "ExVideoApply": {"model": model, "exvideo": extension},
        "ExVideoConditioning": {
            "clip_vision": clip_vision, "vae": vae, "init_image": torch.full((1, 64, 64, 3), 0.4), "width": 64,
            "height": 64, "num_frames": 2,
        },
        "ExVideoScheduler": {"model": model},
        "ExVideoSampler": {"model": extended, **conditions, "steps": 1},
        "ExVideoLongSampler": {
            "model": extended, "clip_vision": clip_vision, "vae": vae, "init_image": torch.full((1, 64, 64, 3), 0.4),
            "width": 64, "height": 64, "total_frames": 5, "segment_frames": 4, "overlap": 1, "steps": 1,
        },
        "ExVideoDecode": {"samples": latent, "vae": vae},
        "ExVideoInterpolate": {"images": torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))},
        "ExVideoRender": {"samples": latent, "vae": vae, "multiplier": 2},
        "ExVideoSave": {"images": torch.full((2, 64, 64, 3), 0.4)},
        "ExVideoPostTune": {
            "model": model, "exvideo": extension, "clip_vision": clip_vision, "vae": vae, "num_frames": 2, "steps": 1,
            "width": 64, "height": 64, "videos": str(tmp_path / "videos"),
        },
        "ExVideoSaveExtension": {"exvideo": extension},
        "ExVideoDoctor": {},
    }  # fmt: skip
    assert inputs.keys() == nodes.keys()
    for node_id, given in inputs.items():
        node = nodes[node_id].PREPARE_CLASS_CLONE({})
        defaults = {i.id: i.default for i in node.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        node.execute(**{**defaults, **given})
        assert torch.equal(torch.get_rng_state(), states[0]), node_id
        assert random.getstate() == states[1], node_id
        assert np.random.get_state()[1].tolist() == states[2], node_id
    assert len(list((tmp_path / "video").glob("*.mp4"))) == 2
    assert len(list((tmp_path / "exvideo").glob("*.safetensors"))) == 1


def test_easy_cache_skips_whole_steps_before_or_after(model, extension, conditions, run):
    """It decides at a step's first prediction, and the others of the step follow."""
    calls = []

    def note(executor, *args, **kwargs):
        # By position or by name, as the host's version likes.
        options = next(value for value in (*args, *kwargs.values()) if isinstance(value, dict))
        calls.append(options["cond_or_uncond"])
        return executor(*args, **kwargs)

    def sample(target):
        clone = target.clone()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", note)
        (samples,) = run("ExVideoSampler", model=clone, **conditions, steps=10, seed=1)
        taken, calls[:] = list(calls), []
        return samples["samples"], taken

    def cached(target):
        return EasyCacheNode.execute(target, 0.9, 0.0, 1.0, False).args[0]

    before, passes = sample(host.apply_extension(cached(model), extension))
    after, same_passes = sample(cached(host.apply_extension(model, extension)))
    assert same_passes == passes
    assert passes.count([0]) == passes.count([1]) < 10
    assert torch.equal(after, before)


# --- memory --------------------------------------------------------------------------------------------------


def test_the_new_modules_are_counted_and_offloaded(model, extension, predict):
    extended = host.apply_extension(model, extension)
    predict(extended, 2)
    (positions,) = extended.get_additional_models()
    assert any(loaded is positions for loaded in comfy.model_management.loaded_models())
    comfy.model_management.unload_all_models()
    assert not comfy.model_management.current_loaded_models


def test_the_releases_new_modules_are_672_mb():
    channels = [320] * 2 + [640] * 2 + [1280] * 6 + [640] * 3 + [320] * 3
    shapes = extension_shapes(128, dict(zip(LAYERS, channels, strict=True)), 1024)
    tensors = {key: torch.empty(shape, dtype=torch.float16, device="meta") for key, shape in shapes.items()}
    layers = PositionLayers(Extension(tensors, 128).position_weights())
    positions = host.patch.ModelPatcher(layers, torch.device("cpu"), torch.device("cpu"))
    assert positions.model_size() / 1e6 == pytest.approx(672, abs=2)


def test_applying_copies_nothing(model, extension):
    extended = host.apply_extension(model, extension)
    assert extended.model is model.model
    for key, weight in extension.replaced_weights():
        ((_, (patch,), *_),) = extended.patches[f"diffusion_model.{key}"]
        assert patch.data_ptr() == weight.data_ptr()
    (positions,) = extended.get_additional_models()
    ours = [tensor for weights in extension.position_weights() for tensor in weights]
    for parameter, tensor in zip(positions.model.parameters(), ours, strict=True):
        assert parameter.data_ptr() == tensor.data_ptr()


def test_a_control_net_acts_the_same_where_skip_connections_would_wait_in_main_memory(
    model, extension, conditions, run, like_a_gpu
):
    extended, net = host.apply_extension(model, extension), control_net()
    inputs = dict(conditions, steps=2)
    for side in ("positive", "negative"):
        inputs[side] = [
            [token, {**ids, "control": net, "control_apply_to_uncond": False}] for token, ids in inputs[side]
        ]
    expected = run("ExVideoSampler", model=extended, **inputs)[0]["samples"]
    like_a_gpu(0)
    ours = run("ExVideoSampler", model=extended, **inputs)[0]["samples"]
    assert (ours - expected).norm() < 1e-4 * expected.norm()
