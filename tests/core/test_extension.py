import math

import pytest
import torch
from safetensors.torch import save_file

from dev import reference
from exvideo_core.extension import (
    BIAS,
    KERNEL,
    LAYERS,
    REPLACED,
    TABLE,
    extension_shapes,
    new_extension,
    position_ids,
    read_extension,
    sinusoid,
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_reads_every_precision(tmp_path, extension, dtype):
    path = tmp_path / "extension.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in extension.tensors.items()}, path)
    assert read_extension(path).tensors["blocks.7.norm_in.weight"].dtype == dtype


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
    tensors = dict(extension.tensors)
    del tensors["blocks.51.ff_in.bias"]
    save_file(tensors, path)
    _refused(path, "blocks.51.ff_in.bias")
    save_file({**extension.tensors, f"blocks.7.{BIAS}": torch.zeros(3)}, path)
    _refused(path, f"blocks.7.{BIAS}")
    save_file({**extension.tensors, "surprise": torch.zeros(3)}, path)
    _refused(path, "surprise")
    save_file({**extension.tensors, f"blocks.7.{TABLE}": torch.tensor(1.0)}, path)
    _refused(path, "not an ExVideo extension")


def test_files_of_other_kinds_are_told_apart(tmp_path, checkpoint, extension_file):
    path = tmp_path / "other.safetensors"
    save_file({UNET_PREFIX + "input_blocks.1.1.time_stack.0.norm1.weight": torch.zeros(1)}, path)
    _refused(path, "Stable Video Diffusion checkpoint")
    save_file({"lora_unet_input_blocks_1.lora_up.weight": torch.zeros(1)}, path)
    _refused(path, "a LoRA")
    path.write_text("just a text")
    _refused(path, "cannot be read")
    path.write_bytes(extension_file.read_bytes()[:-1000])
    _refused(path, "cannot be read")


def test_a_kernel_of_the_wrong_rank_is_refused(tmp_path, extension):
    path = tmp_path / "flat.safetensors"
    save_file({**extension.tensors, f"blocks.7.{KERNEL}": torch.zeros(32, 32)}, path)
    _refused(path, f"blocks.7.{KERNEL}")


def test_extension_of_no_frames_is_refused(checkpoint):
    with pytest.raises(ExVideoError, match="num_frames = 0"):
        new_extension(lambda key: checkpoint[UNET_PREFIX + key], 0)


def test_an_extension_cannot_be_changed(extension):
    with pytest.raises(AttributeError):
        extension.num_frames = 3
