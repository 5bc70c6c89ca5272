"""The recipe of the tiny model, from nothing to an extension, at a step or two of each stage."""

import pytest
import torch
from comfy.ldm.modules.diffusionmodules import model
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.extension import read_extension
from exvideo_pack.exvideo_core.files import open_tensors
from exvideo_pack.exvideo_core.tiny import CHECKPOINT, EXTENSION

from dev.tiny import __main__ as tiny
from dev.tiny import trained
from dev.tiny.data import LONG
from dev.tiny.scenes import PACE

pytestmark = pytest.mark.skipif(
    hasattr(model, "conv_carry_causal_3d"), reason="newer hosts' decoder takes one clip; `dev` has a host of its own"
)
STAGES = (*trained.STAGES, "extension")
RECIPE = tiny.Recipe(
    autoencoder=(1, 1e-3),
    encoder=(2, 1e-3),
    courses=(
        tiny.Course(
            base=(tiny.Grounding(2, 1e-3, tiny.Scenes(PACE, 1)), tiny.Grounding(1, 1e-3, tiny.Scenes(PACE, 1))),
            extension=(
                tiny.Tuning(2, 1e-3, tiny.Scenes(PACE, 1)),
                tiny.Tuning(1, 1e-3, tiny.Scenes(PACE, 1, 1), sigma_min=10.0),
            ),
            averaged=(0, 1),
        ),
        tiny.Course(base=(), extension=(tiny.Tuning(1, 1e-3, tiny.Scenes(None, 1, 2), clips=2),), seed=20),
    ),
)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where stages go instead of into the repository."""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.setattr(tiny, "KEPT", folder)
    monkeypatch.setattr(trained, "KEPT", folder)
    monkeypatch.setattr(tiny, "FOLDER", tmp_path)
    monkeypatch.setattr(tiny, "CACHE", tmp_path / "post_tuning_cache")
    return folder


@torch.inference_mode(False)
def test_every_stage_is_trained_kept_and_not_done_again(kept, tmp_path, predict):
    tiny.train(RECIPE, "base")
    base = (kept / "base.safetensors").read_bytes()
    assert not (kept / "extension.safetensors").exists()
    tiny.train(RECIPE)
    done = (kept / "extension.safetensors").stat().st_mtime_ns
    tiny.train(RECIPE)

    assert (kept / "extension.safetensors").stat().st_mtime_ns == done
    assert (kept / "base.safetensors").read_bytes() == base
    assert sorted(path.name for path in kept.iterdir()) == sorted(
        f"{stage}.{kind}" for stage in STAGES for kind in ("png", "safetensors")
    )
    for stage in STAGES:
        with open_tensors(kept / f"{stage}.safetensors", "") as (file, shapes):
            assert {file.get_tensor(key).dtype for key in shapes} == {torch.float16}

    # What came of it is a model like any other.
    trained.write_trained_model(tmp_path / "models")
    model, _, _ = host.load_svd(tmp_path / "models" / CHECKPOINT)
    extension = read_extension(tmp_path / "models" / EXTENSION)
    assert extension.num_frames == LONG
    with torch.inference_mode():
        extended = host.apply_extension(model, extension, 1.0)
        assert predict(extended, LONG).isfinite().all()
        assert not torch.equal(predict(extended, 5), predict(model, 5))
