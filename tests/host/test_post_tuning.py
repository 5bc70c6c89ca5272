"""Post-tuning inside the host: what it leaves alone, where it is kept, whole trainings."""

import copy
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import pytest
import torch
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.extension import new_extension, read_extension
from exvideo_pack.exvideo_core.host.learning import training_memory
from exvideo_pack.exvideo_core.post_tuning import training
from exvideo_pack.exvideo_core.post_tuning.objective import draw
from exvideo_pack.exvideo_core.post_tuning.recipe import Recipe
from exvideo_pack.exvideo_core.tiny import LAYOUT
from exvideo_pack.exvideo_core.types import ExVideoError, LatentShape
from safetensors.torch import load_file, save_file

from dev.videos import draw_video

LINKS = pytest.mark.skipif(sys.platform == "win32", reason="there links need a permission")


FRAMES, SIDE = 26, 64


def make_videos(folder, *sources):
    for number, source in enumerate(sources):
        draw_video(folder / f"{number}.mp4", source=source)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos"), "testsrc=size=80x64:rate=30", "mandelbrot=size=64x64:rate=30")


@pytest.fixture
def tune(loaded, extension, videos, tmp_path):
    """Post-tune the tiny model; each call with a folder of the same name is the same run."""
    plain, encoder, vae = loaded

    def call(
        steps, run="run", start=None, folder=videos, on_step=lambda progress: None, frames=FRAMES, model=plain,
        must_keep=False, size=(SIDE, SIDE), clip_vision=encoder, **recipe,
    ):  # fmt: skip
        given = Recipe(steps, **{"learning_rate": 1e-4, "save_every": 2, "average_every": 2, **recipe})
        start = start or extension
        return host.post_tune(
            model, start, clip_vision, vae, folder, size, given, tmp_path / run, frames, on_step=on_step,
            must_keep=must_keep,
        )  # fmt: skip

    return call


def same(one, other):
    return all(torch.equal(tensor, other.tensors[key]) for key, tensor in one.tensors.items())


def test_what_is_learned_are_the_temporal_blocks_and_nothing_else(tune, loaded, extension):
    # First, for what another test has patched is put back by new parameters.
    comfy.model_management.load_models_gpu([loaded[0]], force_full_load=True)
    unet = loaded[0].model.diffusion_model
    before = {key: (parameter, parameter.clone()) for key, parameter in unet.named_parameters()}
    start = {key: tensor.clone() for key, tensor in extension.tensors.items()}
    learned, losses = tune(3)
    for key, parameter in unet.named_parameters():
        assert parameter is before[key][0]
        assert torch.equal(parameter, before[key][1])
    assert all(torch.equal(tensor, start[key]) for key, tensor in extension.tensors.items())
    assert not any(module.__dict__.get("comfy_cast_weights") for module in unet.modules())
    assert len(losses) == 3
    moved = [key for key, tensor in learned.tensors.items() if not torch.equal(tensor, start[key].float())]
    # All 528: what has no gradient is moved by AdamW's weight decay, but for what is zero.
    assert {key.split(".")[1] for key in moved} == {key.split(".")[1] for key in start}
    assert all(key in moved or not start[key].any() for key in start)
    assert json.loads(learned.metadata["training"])["steps"] == 3


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(tune):
    whole, losses = tune(5, "whole")

    class StopError(Exception):
        pass

    def stop(progress):
        if progress.step == 3:
            raise StopError

    with pytest.raises(StopError):
        tune(5, "stopped", on_step=stop)
    went_on, others = tune(5, "stopped")
    assert others == losses
    assert same(went_on, whole)
    # And one that was finished goes on when there are more steps to it.
    tune(3, "longer")
    longer, others = tune(5, "longer")
    assert others == losses
    assert same(longer, whole)


def test_a_second_run_in_a_folder_is_refused_while_the_first_goes_on(tune):
    """Also of the same settings; the first does not notice."""

    def at_once(_):
        for seed in (0, 1):
            refused = pytest.raises(ExVideoError, match=r"^Another post-tuning is running in .*run: wait")
            with torch.inference_mode(), refused:
                tune(1, seed=seed)

    assert len(tune(1, on_step=at_once)[1]) == 1
    tune(1, seed=1)


@pytest.mark.parametrize("kept", ["extension", "extension.before"])
def test_a_run_does_not_start_from_what_it_would_replace(tune, tmp_path, kept):
    """Whatever name that file is given; its copy elsewhere, and another run, are fine."""
    folder = tmp_path / "run"
    tune(1)
    file = (folder / "extension.safetensors").replace(folder / f"{kept}.safetensors")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for start in (read_extension(file), read_extension(folder / ".." / "run" / file.name)):
        with pytest.raises(ExVideoError, match=rf"would replace {kept}\.safetensors there, .* choose another run_name"):
            tune(2, start=start)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    if kept == "extension":
        assert len(tune(2)[1]) == 2
        tune(1, "another", start=read_extension(file))


def test_other_settings_videos_or_beginnings_are_another_run(tune, tmp_path, loaded):
    """Two steps each under the same name: going on with the run before would give its losses."""
    _, losses = tune(2)
    assert tune(2)[1] == losses
    learned = (tmp_path / "run" / "extension.safetensors").read_bytes()
    # As many clips, of the same length.
    folder = make_videos(tmp_path / "others", "testsrc2=size=80x64:rate=30", "rgbtestsrc=size=64x64:rate=30")
    start = new_extension(host.base_weights(loaded[0]), FRAMES)
    for change in ({"seed": 1}, {"learning_rate": 2e-4}, {"sigma_min": 20.0}, {"folder": folder}, {"start": start}):
        before, losses = losses, tune(2, **change)[1]
        assert len(losses) == 2
        assert losses != before, change
        # What the run before learned is still there.
        assert (tmp_path / "run" / "extension.before.safetensors").read_bytes() == learned
        learned = (tmp_path / "run" / "extension.safetensors").read_bytes()


def test_another_base_is_another_run(tune, loaded, extension):
    """Which a LoRA makes of a base, but no extension that is applied: that takes no part."""
    key = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
    other = loaded[0].clone()
    other.add_patches({key: (torch.ones_like(loaded[0].model.state_dict()[key]),)})
    taken = []

    def steps(model):
        taken.clear()
        _, losses = tune(2, model=model, on_step=taken.append)
        return len(taken), losses

    count, losses = steps(loaded[0])
    assert count == 2
    assert steps(host.apply_extension(loaded[0], extension, 0.5)) == (0, losses)
    count, others = steps(other)
    assert count == 2
    assert others != losses
    assert steps(loaded[0]) == (0, losses)  # its run was set aside meanwhile
    assert tune(2, "elsewhere")[1] == losses


def test_a_gradient_that_is_no_number_stops(tune, monkeypatch):
    """Here by a clipping whose norm is infinite; nothing may be learned from such a step in silence."""
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))
    with pytest.raises(ExVideoError, match="stopped at step 1: its gradient is no longer a number"):
        tune(2)


def test_a_stopped_run_keeps_its_extension(tune, tmp_path, extension):
    def interrupt(progress):
        if progress.step == 2:
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tune(50, on_step=interrupt)
    kept = read_extension(tmp_path / "run" / "extension.safetensors")
    assert json.loads(kept.metadata["training"])["steps"] == 2
    assert kept.num_frames == extension.num_frames
    assert not same(kept, extension)


def test_of_a_step_that_was_half_taken_no_extension_is_kept(tune, tmp_path, monkeypatch):
    """Here, since memory runs out in the running average: what the checkpoint before it knew is not written over."""
    tune(2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    def fail(_):
        raise MemoryError

    monkeypatch.setattr(training.Training, "_take_in", fail)
    with pytest.raises(MemoryError):
        tune(8, average_every=2)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(tune, loaded, tmp_path, extension, monkeypatch):
    """By a clip whose latents are damaged in the cache, which comes second."""
    tune(1)
    (order,) = [[draw(0, step, 2).clip for step in range(2)]]
    files = sorted((tmp_path / "post_tuning_cache").glob("*.clip"))
    index = sorted((tmp_path / "post_tuning_cache").glob("*.json"), key=lambda p: json.loads(p.read_text())["video"])
    damaged = [json.loads(path.read_text())["clips"][0] for path in index][order[1]]
    (path,) = [file for file in files if file.name == damaged]
    tensors, texts = load_file(path), {"motion_bucket_id": "3"}
    tensors["latents"][5] = torch.nan
    save_file(tensors, path, texts)
    with pytest.raises(ExVideoError, match="stopped at step 2: its loss is no longer a number"):
        tune(4)
    kept = read_extension(tmp_path / "run" / "extension.safetensors")
    assert json.loads(kept.metadata["training"])["steps"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in kept.tensors.values())


def test_a_full_disk_at_a_checkpoint_loses_nothing(tune, tmp_path, monkeypatch, caplog):
    """The device that is always full stands for it; the run ends, and gives its extension to the graph."""
    folder = tmp_path / "run"
    folder.mkdir()
    real = training.save_tensors

    def full(path, tensors, texts):
        if path.name == training.STATE:
            path = Path("/proc/no/space/left")
        return real(path, tensors, texts)

    monkeypatch.setattr(training, "save_tensors", full)
    learned, losses = tune(4)
    assert len(losses) == 4
    assert "could not be kept" in caplog.text
    assert not list(folder.glob("*.state*"))
    assert same(learned, tune(4, "another")[0])


def test_a_finished_run_whose_extension_cannot_be_written_gives_it_back_or_says_so(tune, tmp_path, caplog):
    """Here, since a folder has its name. A run that was stopped says why, and nothing else."""
    (tmp_path / "run" / "extension.safetensors").mkdir(parents=True)
    learned, _ = tune(2)
    assert "could not be kept: extension.safetensors could not be written" in caplog.text
    with pytest.raises(ExVideoError, match=r"^extension\.safetensors could not be written .* choose another folder"):
        tune(2, must_keep=True)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(3, on_step=stop, must_keep=True)
    assert same(learned, tune(2, "another")[0])


@pytest.mark.parametrize("name", ["file", "file/run", pytest.param("link", marks=LINKS), "n" * 300])
def test_a_folder_that_nothing_can_be_written_to_is_told_before_any_work(tune, tmp_path, name):
    """And looking leaves nothing behind, nor the folder of a run that is never begun."""
    (tmp_path / "file").write_text("a file")
    if name == "link":
        (tmp_path / name).symlink_to(tmp_path / "nowhere" / "at" / "all")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExVideoError, match=r"^A training cannot be kept in .* \(.*\): choose a folder that can be"):
        tune(1, name)
    with pytest.raises(ExVideoError, match="There is no folder"):
        tune(1, "a/new/run", folder=tmp_path / "none")
    assert sorted(tmp_path.rglob("*")) == before


def test_lengths_from_one_frame_to_more_than_the_extension_has(tune, loaded, caplog):
    start = new_extension(host.base_weights(loaded[0]), 8)
    caplog.set_level(logging.INFO)
    one, _ = tune(1, "one", size=(SIDE, SIDE + 8), start=new_extension(host.base_weights(loaded[0]), 1), frames=0)
    assert one.num_frames == 1
    assert f"clips of 1 frames, {SIDE + 8}×{SIDE}." in caplog.text
    longer, _ = tune(1, "longer", start=start, frames=20)
    assert longer.num_frames == 20
    assert longer.tensors["blocks.7.positional_embedding.embeddings"].shape == (20, 32)


def test_clips_that_are_longer_than_all_videos_are_told(tune):
    with pytest.raises(ExVideoError, match="None of the 2 files"):
        tune(1, frames=500)


def test_a_loras_part_in_what_is_trained_is_told(tune, loaded, caplog):
    """All the rest of it counts."""
    told = "leaves out what a LoRA changes in the layers over time"
    for part, expected in (("transformer_blocks", False), ("time_stack", True)):
        name, model = f"diffusion_model.input_blocks.1.1.{part}.0.attn1.to_q.weight", loaded[0].clone()
        assert model.add_patches({name: ("diff", (torch.ones(model.model.state_dict()[name].shape),))}, 0.1)
        tune(1, part, model=model)
        assert (told in caplog.text) == expected


def test_an_extension_that_is_all_that_is_left_of_a_run_is_kept(tune, tmp_path):
    tune(3)
    learned = (tmp_path / "run" / training.EXTENSION).read_bytes()
    (tmp_path / "run" / training.STATE).unlink()
    tune(1, seed=3)
    assert (tmp_path / "run" / "extension.before.safetensors").read_bytes() == learned
    assert (tmp_path / "run" / training.EXTENSION).read_bytes() != learned


def test_an_extension_of_another_width_is_refused_before_any_video_is_encoded(tune, loaded, tmp_path):
    wider = dict(replace(LAYOUT.unet, channels=64).tensors())
    other = new_extension(lambda key: torch.zeros(wider[key]), FRAMES)
    with pytest.raises(ExVideoError, match="does not fit the model"):
        tune(1, start=other)
    assert not list(tmp_path.iterdir())  # no clip was encoded


def test_an_image_encoder_of_another_width_is_refused_before_any_video_is_encoded(tune, loaded, tmp_path):
    wider, width = copy.copy(loaded[1]), loaded[0].model.model_config.unet_config["context_dim"]
    wider.model = copy.deepcopy(wider.model)
    wider.model.visual_projection = torch.nn.Linear(wider.model.visual_projection.in_features, width + 1, bias=False)
    with pytest.raises(
        ExVideoError,
        match=f"^The image encoder describes a picture by {width + 1} numbers, but this model takes {width}: connect "
        r"the image encoder of the SVD checkpoint at clip_vision\.",
    ):
        tune(1, clip_vision=wider)
    assert not list(tmp_path.iterdir())


def test_memory_for_parameters_gradients_and_moments_is_counted(loaded, extension):
    total = comfy.model_management.get_total_memory(loaded[0].load_device) - loaded[0].model_size()
    one, four = (
        total - training_memory(loaded[0], extension, LatentShape(26, 4, 8, 8), spread)[1] for spread in (1, 4)
    )
    parameters = 4 * sum(tensor.numel() for tensor in extension.tensors.values())
    assert one == 4 * parameters
    assert four == pytest.approx(one * (2 + 4 / 4) / 4, rel=1e-3)  # parts of gradients and moments, and a whole step's
