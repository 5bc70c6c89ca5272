"""The tiny model inside this process's ComfyUI, through the pack's own nodes."""

import pytest
import torch
from exvideo_pack.exvideo_core.tiny import write_tiny_model

from dev.inside import node_runner, pack_nodes
from tests.host.long_runs import SHORT, StoppedError


@pytest.fixture(autouse=True)
def _as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A models folder with the tiny model, known to the host."""
    import folder_paths

    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder)
    for name in ("checkpoints", "exvideo"):
        folder_paths.add_model_folder_path(name, str(folder / name))
    return folder


@pytest.fixture(scope="session")
def nodes(models):
    """The pack's nodes by id, as the host gets them."""
    return pack_nodes()


@pytest.fixture(scope="session")
def run(models):
    """Execute a node with its schema's defaults where no input is given, as the host would."""
    return node_runner()


@pytest.fixture(scope="session")
def loaded(models, predict):
    """MODEL, CLIP_VISION and VAE of the tiny checkpoint, without an extension."""
    import comfy.model_management
    from exvideo_pack.exvideo_core import chunked, host
    from exvideo_pack.exvideo_core.tiny import CHECKPOINT

    with torch.inference_mode():
        model, clip_vision, vae = host.load_svd(models / CHECKPOINT)
        before = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}
        output = predict(model, 3)
    yield model, clip_vision, vae
    # After all that the tests did with it: the same weights, the same output, nothing left on its layers.
    with torch.inference_mode():
        assert torch.equal(predict(model, 3), output)
    comfy.model_management.unload_all_models()
    after = model.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert not model.patches
    assert not any(chunked.is_led(module) for module in model.model.modules())
    assert not any(getattr(module, "weight_function", None) for module in model.model.modules())


@pytest.fixture
def load(models, monkeypatch):
    """The tiny model, its weights stored and its arithmetic done as told."""

    import comfy.model_management
    from exvideo_pack.exvideo_core import host
    from exvideo_pack.exvideo_core.tiny import CHECKPOINT

    def call(stored, computed):
        # The host's choice for this machine would be float32 throughout.
        with monkeypatch.context() as patch:
            patch.setattr(comfy.model_management, "unet_dtype", lambda *args, **kwargs: stored)
            cast = None if stored == computed else computed
            patch.setattr(comfy.model_management, "unet_manual_cast", lambda *args, **kwargs: cast)
            model = host.load_svd(models / CHECKPOINT)[0]
        assert model.model.get_dtype() == stored
        assert (model.model.manual_cast_dtype or stored) == computed
        return model

    return call


@pytest.fixture
def little_memory(monkeypatch):
    """Tell the host that it has a device of its own, with room for a third of a model."""
    import comfy.model_management

    management = comfy.model_management

    def tell(size):
        monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
        monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
        room = management.minimum_inference_memory() + size // 3

        def free(device=None, torch_free_too=False):
            return (room, room) if torch_free_too else room

        monkeypatch.setattr(management, "get_free_memory", free)

    yield tell
    monkeypatch.undo()
    management.unload_all_models()


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Let the CPU pass for a device with so many bytes free, and main memory beside it."""
    import comfy.model_management
    from exvideo_pack.exvideo_core.host import memory

    def call(free):
        monkeypatch.setattr(memory, "_has_its_own_memory", lambda device: True)
        monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
        # Sometimes the host asks what torch has of it, too.
        monkeypatch.setattr(
            comfy.model_management,
            "get_free_memory",
            lambda _device=None, torch_free_too=False: (free, free) if torch_free_too else free,
        )

    return call


@pytest.fixture(scope="session")
def extension(models):
    from exvideo_pack.exvideo_core.extension import read_extension
    from exvideo_pack.exvideo_core.tiny import EXTENSION

    return read_extension(models / EXTENSION)


@pytest.fixture(scope="session")
def windowed():
    """A MODEL on which the host's samplers work in its context windows, as its node's defaults are, or with others."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    defaults = {i.id: getattr(i, "default", None) for i in ContextWindowsManualNode.define_schema().inputs}
    del defaults["model"]
    defaults["context_schedule"] = defaults["context_schedule"] or "standard_static"
    return lambda model, **options: ContextWindowsManualNode.execute(model, **{**defaults, **options}).args[0]


@pytest.fixture(scope="session")
def predict():
    """One guided-less call of a MODEL's UNet the way the host's samplers make it: σ = 5, everything seeded."""
    import comfy.samplers

    def call(model, frames, side=16, seed=0):
        generator = torch.Generator().manual_seed(seed)
        x, image = (torch.randn(frames, 4, side, side, generator=generator) for _ in range(2))
        token = torch.randn(1, 1, model.model.model_config.unet_config["context_dim"], generator=generator)
        ids = {"fps": 30, "motion_bucket_id": 127, "augmentation_level": 0.02, "concat_latent_image": image[:1]}
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds([[token, ids]], [[token * 0, ids]])
        guider.set_cfg(1.0)
        seen = []

        def one_call(denoise, noised, sigmas, extra_args, **_):
            seen.append(denoise(noised, sigmas[:1].expand(frames), **extra_args))
            return noised

        sampler = comfy.samplers.KSAMPLER(one_call)
        guider.sample(x, torch.zeros_like(x), sampler, torch.tensor([5.0, 0.0]), disable_pbar=True, seed=seed)
        return seen[0].clone()

    return call


@pytest.fixture(scope="session")
def run_unet():
    """One pass of an extended MODEL's UNet, of several videos in one batch, without a sampler around it."""
    import comfy.model_management

    def call(model, latents, images, tokens, ids, timestep, options=None):
        frames = len(latents[0])
        x = torch.cat([torch.cat([latent, image], 1) for latent, image in zip(latents, images, strict=True)])
        context = torch.cat([token.expand(frames, -1, -1) for token in tokens])
        fps, motion, level = ids
        # The host's embedding of ids takes the fps as a person says it, and subtracts 1.
        adm = model.model.encode_adm(fps=fps + 1, motion_bucket_id=motion, augmentation_level=level)
        comfy.model_management.load_models_gpu([model, *model.get_additional_models()])
        return model.model.diffusion_model(
            x,
            torch.full((len(x),), timestep),
            context,
            adm.expand(len(x), -1).to(x),
            transformer_options={**(options or {}), "wrappers": model.wrappers},
            num_video_frames=frames,
        )

    return call


@pytest.fixture(scope="session")
def condition(loaded, run):
    """What ExVideo Image to Video makes of a small picture: positive, negative and an empty clip, by name."""

    def call(frames):
        _, clip_vision, vae = loaded
        picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
        inputs = {"clip_vision": clip_vision, "vae": vae, "init_image": picture, "width": 64, "height": 64}
        positive, negative, latent, _ = run("ExVideoConditioning", num_frames=frames, **inputs)
        return {"positive": positive, "negative": negative, "latent": latent}

    return call


@pytest.fixture
def picture():
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def watched(loaded, extension):
    """The extended model, which counts its passes and may be told to stop in one, or to spoil one."""
    from comfy.patcher_extension import WrappersMP
    from exvideo_pack.exvideo_core import host

    model = host.apply_extension(loaded[0], extension)
    counted = {"passes": 0, "stop": None, "spoil": None}

    def watch(executor, *args, **kwargs):
        counted["passes"] += 1
        if counted["passes"] == counted["stop"]:
            raise StoppedError
        made = executor(*args, **kwargs)
        return made * torch.nan if counted["passes"] == counted["spoil"] else made

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watch)
    return model, counted


@pytest.fixture
def long(run, loaded, watched, picture):
    """ExVideo Long Sampler with few frames and steps where nothing else is given: its latents."""

    def call(**inputs):
        _, clip_vision, vae = loaded
        given = {"model": watched[0], "clip_vision": clip_vision, "vae": vae, "init_image": picture, **SHORT}
        samples, fps = run("ExVideoLongSampler", **{**given, **inputs})
        assert fps == inputs.get("fps", 30)
        return samples["samples"]

    return call


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The output folder, for this test alone."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path / "exvideo" / "runs"
