import datetime
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dev import reference
from exvideo_core import extension as reading
from exvideo_core.extension import (
    BIAS,
    KERNEL,
    LAYERS,
    REPLACED,
    TABLE,
    Extension,
    extension_shapes,
    longer_extension,
    new_extension,
    position_ids,
    read_extension,
    sinusoid,
    write_extension,
)
from exvideo_core.svd import UNET_PREFIX, SVDLayout
from exvideo_core.tiny import LAYOUT, draw_checkpoint, draw_extension
from exvideo_core.types import ExVideoError

CHANNELS = dict(zip(LAYERS, [320] * 2 + [640] * 2 + [1280] * 6 + [640] * 3 + [320] * 3, strict=True))


@pytest.fixture(scope="module")
def checkpoint():
    return draw_checkpoint(LAYOUT)


@pytest.fixture
def extension(checkpoint):
    return draw_extension(checkpoint, 7)


@pytest.fixture
def extension_file(tmp_path, extension):
    path = tmp_path / "extension.safetensors"
    save_file(dict(extension.tensors), path, metadata={"note": "a test"})
    return path


def test_the_key_map_is_complete():
    shapes = extension_shapes(128, CHANNELS, 1024)
    assert len(shapes) == 528
    assert sum(math.prod(shape) for shape in shapes.values()) == pytest.approx(833.0e6, rel=1e-4)
    unet = dict(SVDLayout().unet.tensors())
    seen = set()
    for block, layer in LAYERS.items():
        for theirs, ours in REPLACED.items():
            assert shapes[f"blocks.{block}.{theirs}"] == unet[f"{layer}.{ours}"]
            seen.add(f"{layer}.{ours}")
    # Everything temporal of the transformers is replaced, except the factor that mixes it in, and nothing else is.
    layers = tuple(f"{layer}." for layer in LAYERS.values())
    temporal = {k for k in unet if k.startswith(layers) and (".time_stack." in k or ".time_pos_embed." in k)}
    assert seen == temporal
    assert len(seen) == 480


def test_the_reference_has_the_same_tensors():
    with torch.device("meta"):
        unet = reference.module("diffsynth.models.svd_unet").SVDUNet(add_positional_conv=128)
    blocks = tuple(f"blocks.{block}." for block in LAYERS)
    theirs = {key: tuple(t.shape) for key, t in unet.state_dict().items() if key.startswith(blocks)}
    assert extension_shapes(128, CHANNELS, 1024) == theirs


def test_positions_bounce():
    ids = position_ids(128)
    assert ids[:25] == list(range(25))
    assert ids[25:65] == [*range(23, 3, -1), *range(5, 25)]
    assert ids[65:105] == ids[25:65]
    assert max(ids) == 24
    assert min(ids[25:]) == 4


@pytest.mark.parametrize("num_frames", [2, 25, 26, 128, 300])
def test_the_table_starts_as_the_reference_does(num_frames):
    theirs = reference.module("diffsynth.models.svd_unet").TrainableTemporalTimesteps(320, True, 0, num_frames)
    torch.testing.assert_close(sinusoid(position_ids(num_frames), 320), theirs.embeddings.data)


def test_a_new_extension_is_the_base_and_an_identity(checkpoint):
    new = new_extension(lambda key: checkpoint[UNET_PREFIX + key], 40)
    for key, weight in new.replaced_weights():
        assert torch.equal(weight, checkpoint[UNET_PREFIX + key])
    for table, kernel, bias in new.position_weights():
        assert table.shape[0] == 40
        assert torch.equal(kernel[:, :, 1, 1, 1], torch.eye(kernel.shape[0]))
        assert kernel.count_nonzero() == kernel.shape[0]
        assert not bias.any()


def test_reads_what_was_saved(extension, extension_file):
    read = read_extension(extension_file)
    assert read.num_frames == 7
    assert read.metadata["note"] == "a test"
    assert read.tensors.keys() == extension.tensors.keys()
    assert all(torch.equal(read.tensors[key], tensor) for key, tensor in extension.tensors.items())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
@pytest.mark.parametrize("stay", [False, True])
def test_a_file_is_held_only_where_another_may_take_its_place(extension_file, monkeypatch, stay):
    """On Windows none may, and post-tuning could not keep what it learned under the name that it started from."""
    monkeypatch.setattr(reading, "_MAPPED_FILES_STAY", stay)
    read = read_extension(extension_file)
    assert read.num_frames == 7
    assert (str(extension_file) in Path("/proc/self/maps").read_text()) != stay


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_reads_every_precision(tmp_path, extension, dtype):
    path = tmp_path / "extension.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in extension.tensors.items()}, path)
    assert read_extension(path).tensors["blocks.7.norm_in.weight"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_read_as_float16_which_has_the_same_numbers(tmp_path, extension, dtype):
    path = tmp_path / "extension.safetensors"
    # Most files of this kind have only matrices in float8.
    stored = {key: t.to(dtype) if t.ndim > 1 and TABLE not in key else t for key, t in extension.tensors.items()}
    save_file(stored, path)
    for key, tensor in read_extension(path).tensors.items():
        assert tensor.dtype == (torch.float16 if stored[key].dtype == dtype else torch.float32)
        assert torch.equal(tensor.float(), stored[key].float())
    stored["blocks.83.ff_out.weight"].view(-1)[77] = math.nan
    save_file(stored, path)
    _refused(path, "among them blocks.83.ff_out.weight, have numbers that are NaN")


@pytest.mark.parametrize("prefix", ["unet.", "module.", "module.unet."])
def test_names_may_have_a_common_beginning(tmp_path, extension, prefix):
    path = tmp_path / "extension.safetensors"
    tensors = {prefix + key: tensor for key, tensor in extension.tensors.items()}
    save_file(tensors, path)
    read = read_extension(path)
    assert read.tensors.keys() == extension.tensors.keys()
    assert all(torch.equal(read.tensors[key], tensor) for key, tensor in extension.tensors.items())
    save_file({**tensors, "other.blocks.7.ff_in.bias": torch.zeros(32)}, path)
    _refused(path, "damaged", "other.blocks.7.ff_in.bias is unknown.")
    del tensors[f"{prefix}blocks.51.ff_in.bias"]
    save_file(tensors, path)
    _refused(path, "damaged", "blocks.51.ff_in.bias is missing.")


def test_strength_blends_linearly(extension):
    (half, *_), (full, *_) = (list(extension.position_weights(s)) for s in (0.5, 1.0))
    (none, *_) = extension.position_weights(0.0)
    for low, middle, high in zip(none, half, full, strict=True):
        torch.testing.assert_close(middle, (low + high) / 2)
    assert torch.equal(none.table, sinusoid(position_ids(7), none.table.shape[1]))
    assert full.table is extension.tensors[f"blocks.7.{TABLE}"]


def _refused(path, *told):
    with pytest.raises(ExVideoError) as error:
        read_extension(path)
    for text in (path.name, *told):
        assert text in str(error.value)


def test_a_damaged_file_is_refused_by_name(tmp_path, extension):
    path = tmp_path / "damaged.safetensors"

    def damaged(**changes):
        tensors = {**extension.tensors, **{f"blocks.{key}": tensor for key, tensor in changes.items()}}
        save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path)

    damaged(**{"51.ff_in.bias": None})
    _refused(path, "damaged", "blocks.51.ff_in.bias is missing.")
    damaged(**{"51.norm_in.weight": None})
    _refused(path, "damaged", "blocks.51.norm_in.weight is missing.")
    damaged(**{f"7.{BIAS}": torch.zeros(3)})
    _refused(path, f"blocks.7.{BIAS} is [3] instead of [32].")
    damaged(**{f"7.{KERNEL}": torch.zeros(32, 32)})
    _refused(path, f"blocks.7.{KERNEL} is [32, 32] instead of [32, 32, 3, 3, 3].")
    damaged(**{"7.surprise": torch.zeros(3)})
    _refused(path, "blocks.7.surprise is unknown.")
    damaged(**{f"7.{TABLE}": torch.tensor(1.0)})
    _refused(path, f"blocks.7.{TABLE} is [] instead of [7, 32].")
    damaged(**{f"17.{TABLE}": torch.zeros(9, 32)})
    _refused(path, f"blocks.17.{TABLE} is [9, 32] instead of [7, 32].")
    damaged(**{f"{block}.ff_in.bias": None for block in LAYERS})
    _refused(path, "blocks.7.ff_in.bias is missing, blocks.17.ff_in.bias is missing, ", "and 13 more")
    save_file({key: t[:0].contiguous() if key.endswith(TABLE) else t for key, t in extension.tensors.items()}, path)
    _refused(path, "for no frames")


def test_a_file_with_holes_is_refused(tmp_path, extension_file):
    """Some programs give a download its whole length at once; what has not come yet are zeros."""
    whole = extension_file.read_bytes()
    path = tmp_path / "stopped.safetensors"
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    _refused(path, "hold nothing but zeros, as where a download was not finished")


def test_a_kernel_of_zeros_in_every_block_is_no_hole(tmp_path, extension_file):
    stored = load_file(extension_file)
    save_file({k: torch.zeros_like(t) if k.endswith(KERNEL) else t for k, t in stored.items()}, extension_file)
    assert read_extension(extension_file).num_frames == 7


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_numbers_that_are_none_are_refused(tmp_path, extension, bad, dtype):
    path = tmp_path / "nan.safetensors"
    tensors = {key: tensor.to(dtype) for key, tensor in extension.tensors.items()}
    tensors["blocks.83.ff_out.weight"].view(-1)[77] = bad
    save_file(tensors, path)
    _refused(path, "1 of its tensors, among them blocks.83.ff_out.weight, have numbers that are NaN")
    save_file({**extension.tensors, "blocks.7.ff_in.bias": torch.zeros(32, dtype=torch.int32)}, path)
    _refused(path, "blocks.7.ff_in.bias", "not floating-point")


OTHERS = {
    "model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight": "a Stable Video Diffusion checkpoint",
    "model.diffusion_model.input_blocks.1.1.norm.weight": "a checkpoint of another model",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": "a Stable Diffusion checkpoint",
    "conditioner.embedders.1.model.ln_final.weight": "a Stable Diffusion XL checkpoint",
    "lora_unet_input_blocks_1.lora_up.weight": "a LoRA",
    "blocks.7.attn1.to_q.lora_A.weight": "a LoRA",
    "down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.bias": "the UNet of Stable Video Diffusion",
    "input_blocks.1.1.positional_conv.weight": "an ExVideo extension under other names",
    "blocks.0.self_attn.q.weight": "another diffusion model (Wan)",
    "something": "another model, of 1 tensors",
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_other_kinds_are_told_apart(tmp_path, name):
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(1)}, path)
    _refused(path, "should be an ExVideo extension, but it is", OTHERS[name])


def test_a_file_without_tensors(tmp_path):
    path = tmp_path / "none.safetensors"
    save_file({}, path)
    _refused(path, "a file without tensors")


def test_files_that_are_no_safetensors_are_told_apart(tmp_path, extension_file):
    path = tmp_path / "other.safetensors"
    whole = extension_file.read_bytes()
    torch.save({"a": torch.zeros(1)}, path)
    _refused(path, "should be a .safetensors file", "a pickled PyTorch checkpoint", "can run code")
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    _refused(path, "a pickled PyTorch checkpoint")
    for content, told in {
        b"just a text": "it is a text file",
        b"version https://git-lfs.github.com/spec/v1": "a Git LFS pointer",
        b"\n<!doctype html><html>": "a web page",
        b"\xef\xbb\xbf<!doctype html><html>": "a web page",
        b"\x80\x04\x95": "a pickled PyTorch checkpoint",
        bytes(5000): "nothing but zeros: most likely its download was not finished",
        b"\x20" + whole[1:3000]: "most likely cut short: 3000 bytes",  # a length that begins as a blank does
        b"GGUF\x03\0\0\0": "a GGUF file",
        b"": "it is empty",
        b"\x89PNG\r\n\x1a\n\0\0": "it is something else",
        whole[:-1000]: f"most likely cut short: {len(whole) - 1000} bytes",
        whole[:3000]: "most likely cut short: 3000 bytes",
    }.items():
        path.write_bytes(content)
        _refused(path, told)
    path.unlink()
    _refused(path, "it cannot be opened")


def test_a_ckpt_is_never_unpickled(tmp_path, extension):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    path = tmp_path / "model.ckpt"
    torch.save({**extension.tensors, "trap": Trap()}, path)
    _refused(path, "a pickled PyTorch checkpoint")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("num_frames", [2, 25, 26, 300])
def test_any_length_is_read(tmp_path, checkpoint, num_frames):
    path = tmp_path / "extension.safetensors"
    save_file(dict(draw_extension(checkpoint, num_frames).tensors), path)
    assert read_extension(path).num_frames == num_frames


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_written_is_read(tmp_path, extension, dtype):
    path = tmp_path / "new folder" / "extension.safetensors"
    write_extension(replace(extension, metadata={"steps": "7"}), path, dtype, {"workflow": "{}"})
    read = read_extension(path)
    assert all(torch.equal(read.tensors[key], tensor.to(dtype)) for key, tensor in extension.tensors.items())
    assert read.metadata == {
        "format": "pt",
        "base": "Stable Video Diffusion, 32 channels",
        "frames": "7",
        "date": datetime.date.today().isoformat(),
        "steps": "7",
        "workflow": "{}",
    }
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    # What was read may be written again, in place of itself even.
    write_extension(read, path, dtype)
    again = read_extension(path).metadata
    assert again["steps"] == "7"
    assert "workflow" not in again  # of the graph that made another file, which may not be meant to be seen


def test_the_authors_code_loads_what_is_written(tmp_path, checkpoint, extension):
    path = tmp_path / "extension.safetensors"
    write_extension(extension, path, torch.float32)
    tensors = load_file(path)
    # Refuses any name it does not know, and any it misses.
    unet = reference.unet(checkpoint, Extension(tensors, 7), LAYOUT.unet.head)
    assert unet.blocks[7].positional_embedding.embeddings.shape == (7, 32)
    assert torch.equal(unet.blocks[195].ff_out.weight, extension.tensors["blocks.195.ff_out.weight"])


def test_what_does_not_fit_is_not_written(tmp_path, extension):
    path = tmp_path / "extension.safetensors"
    large = Extension({**extension.tensors, "blocks.7.ff_in.bias": torch.full((32,), 1e6)}, 7)
    with pytest.raises(ExVideoError, match=r"cannot be saved as float16.*blocks\.7\.ff_in\.bias.*another precision"):
        write_extension(large, path)
    write_extension(large, path, torch.bfloat16)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExVideoError, match="could not be written"):
        write_extension(extension, tmp_path / "file" / "extension.safetensors")
    assert {p.name for p in tmp_path.iterdir()} == {"extension.safetensors", "file"}


def test_extension_of_no_frames_is_refused(checkpoint):
    with pytest.raises(ExVideoError, match="num_frames = 0"):
        new_extension(lambda key: checkpoint[UNET_PREFIX + key], 0)


def test_an_extension_cannot_be_changed(extension):
    with pytest.raises(AttributeError):
        extension.num_frames = 3


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which is Linux's")
def test_reading_takes_no_more_memory_than_the_file_has(tmp_path):
    """The release's size, 1.67 GB, in a process of its own: mapped from the disk, not copied."""
    path = tmp_path / "model.fp16.safetensors"
    shapes = extension_shapes(128, CHANNELS, 1024)
    save_file({key: torch.full(shape, 0.5, dtype=torch.float16) for key, shape in shapes.items()}, path)
    code = """if True:
        import sys, torch
        from exvideo_core.extension import read_extension

        def memory():
            lines = open("/proc/self/status").read().splitlines()
            kib = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmHWM", "RssAnon"))}
            return int(kib["VmHWM"]) * 1024, int(kib["RssAnon"]) * 1024

        before = memory()
        extension = read_extension(sys.argv[1])
        print(*(after - earlier for after, earlier in zip(memory(), before)), len(extension.tensors))
    """
    arguments = [sys.executable, "-P", "-c", code, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    peak, anonymous, tensors = map(int, done.stdout.split())
    size = path.stat().st_size
    path.unlink()
    print(f"\nreading {size / 1e9:.2f} GB: peak + {peak / 1e9:.2f} GB, {anonymous / 1e9:.3f} of it not the file's own")
    assert size == pytest.approx(1.67e9, rel=0.01)
    assert tensors == 528
    assert peak < 1.1 * size
    assert anonymous < 0.05 * size


def test_a_longer_extension_says_how_long_it_is(tmp_path):
    weights = draw_checkpoint(LAYOUT, part=UNET_PREFIX)
    new = new_extension(lambda key: weights[UNET_PREFIX + key], 25)
    write_extension(new, tmp_path / "a.safetensors")
    write_extension(longer_extension(read_extension(tmp_path / "a.safetensors"), 30), tmp_path / "b.safetensors")
    again = read_extension(tmp_path / "b.safetensors")
    assert (again.num_frames, again.metadata["frames"]) == (30, "30")
