"""What the demo decides before and around the server: pictures, models, overrides."""

import numpy as np
import pytest
from PIL import Image

from dev.demo import _parse
from dev.errors import DevError
from dev.models import TINY_CHECKPOINT, TINY_EXTENSION, choose
from dev.picture import write_clean_copy
from dev.workflow import options, override_api


def cleaned(tmp_path, image):
    source, target = tmp_path / "source.png", tmp_path / "clean.png"
    image.save(source)
    write_clean_copy(source, target)
    with Image.open(target) as clean:
        assert (clean.format, clean.mode) == ("PNG", "RGB")
        return np.asarray(clean).copy()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    levels = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    clean = cleaned(tmp_path, Image.fromarray(levels))
    assert np.abs(clean[..., 0] - levels / 257).max() <= 1


def test_alpha_lies_on_white(tmp_path):
    clean = cleaned(tmp_path, Image.new("RGBA", (4, 4), (255, 0, 0, 0)))
    assert (clean == 255).all()


def test_grey_stays_grey_and_huge_is_shrunk(tmp_path):
    clean = cleaned(tmp_path, Image.new("L", (4000, 3000), 90))
    assert clean.shape == (1536, 2048, 3)
    assert (clean == 90).all()


def test_a_text_is_no_picture(tmp_path):
    source = tmp_path / "text.png"
    source.write_text("no picture")
    with pytest.raises(DevError, match=r"text\.png"):
        write_clean_copy(source, tmp_path / "clean.png")
    assert not (tmp_path / "clean.png").exists()


@pytest.mark.parametrize(
    ("checkpoints", "extensions", "chosen"),
    [
        ([TINY_CHECKPOINT], [TINY_EXTENSION], (TINY_CHECKPOINT, TINY_EXTENSION)),
        (["svd.safetensors", TINY_CHECKPOINT, "video/svd_xt.safetensors"], [TINY_EXTENSION, "model.fp16.safetensors"],
         ("video/svd_xt.safetensors", "model.fp16.safetensors")),
        (["svd_xt.ckpt", "sd15.safetensors", TINY_CHECKPOINT], ["model.fp16.safetensors", TINY_EXTENSION],
         (TINY_CHECKPOINT, TINY_EXTENSION)),
    ],
)  # fmt: skip
def test_real_models_go_before_tiny_ones(checkpoints, extensions, chosen):
    assert choose(checkpoints, extensions) == chosen


def test_no_models_end_in_a_sentence():
    with pytest.raises(DevError, match=TINY_CHECKPOINT):
        choose(["sd15.safetensors"], [])


def test_overrides_leave_the_original_alone():
    graph = {"1": {"class_type": "A", "inputs": {"x": 1, "y": 2}}, "2": {"class_type": "B", "inputs": {"x": 1}}}
    assert override_api(graph, {"A": {"x": 5}})["1"]["inputs"] == {"x": 5, "y": 2}
    assert graph["1"]["inputs"]["x"] == 1
    with pytest.raises(DevError, match="C"):
        override_api(graph, {"C": {"x": 5}})


def test_lists_are_read_in_both_schema_forms():
    for combo in (["COMBO", {"options": ["a"]}], [["a"], {}]):
        assert list(options({"input": {"required": {"name": combo}}}, "name")) == ["a"]


@pytest.mark.parametrize("wrong", [["--size=65"], ["--size=8"], ["--size=64x64x64"], ["--frames=0"], ["--steps=x"]])
def test_wrong_numbers_are_told(wrong, capsys):
    with pytest.raises(SystemExit) as left:
        _parse(wrong)
    assert left.value.code == 2
    assert "should be" in capsys.readouterr().err


def test_sizes_are_width_by_height():
    assert _parse(["--size=128x96"]).size == (128, 96)
    assert _parse(["--size=64"]).size == (64, 64)
