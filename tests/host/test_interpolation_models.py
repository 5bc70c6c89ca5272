"""The host's own models for frames between frames, FILM and RIFE, on its socket; random weights, since it is the way
that counts. 0.3.75 has none."""

import folder_paths
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

theirs = pytest.importorskip("comfy_extras.nodes_frame_interpolation", reason="this ComfyUI has no such models")
SIZES = ((64, 128), (70, 90))
"""The second has to be padded."""


@pytest.fixture(scope="module", params=["FILM", "RIFE"])
def model(request, tmp_path_factory):
    """As the host's loader makes it of a file."""
    folder = tmp_path_factory.mktemp("frame_interpolation")
    folder_paths.add_model_folder_path("frame_interpolation", str(folder))
    generator = torch.Generator().manual_seed(0)
    shapes = (theirs.FILMNet() if request.param == "FILM" else theirs.IFNet()).state_dict()
    # In a dict's order, so that the same numbers come each time.
    weights = {
        key: torch.randn(t.shape, generator=generator) / max(t[0].numel() if t.ndim else 1, 1) ** 0.5
        for key, t in shapes.items()
    }
    save_file(weights, folder / f"{request.param}.safetensors")
    with torch.inference_mode():
        return theirs.FrameInterpolationModelLoader.execute(f"{request.param}.safetensors").args[0]


def moving(height, width):
    """Four frames, [4, H, W, 3]: a texture that shifts by two pixels a frame."""
    texture = torch.rand(height // 4 + 1, width // 4 + 1, 3, generator=torch.Generator().manual_seed(1))
    large = texture.repeat_interleave(4, 0).repeat_interleave(4, 1)[:height, :width]
    return torch.stack([large.roll(2 * i, 1) for i in range(4)])


@pytest.mark.parametrize("multiplier", [2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_the_host_s_model_makes_the_frames_between(run, model, size, multiplier):
    frames = moving(*size)
    ours, fps = run("ExVideoInterpolate", images=frames, multiplier=multiplier, fps=10.0, model=model)
    (host,) = theirs.FrameInterpolate.execute(model, frames, multiplier).args
    assert fps == 10.0 * multiplier
    assert ours.shape == host.shape == (3 * multiplier + 1, *size, 3)
    assert torch.equal(ours[::multiplier], frames)
    between = [n for n in range(len(ours)) if n % multiplier]
    if size == SIZES[0]:
        torch.testing.assert_close(ours[between], host[between], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours[between], frames[[n // multiplier for n in between]], atol=1e-2)


def test_rendering_takes_it_too(run, model, loaded, tmp_path, monkeypatch):
    """The same frames as of the three nodes, as PNGs."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    samples = {"samples": torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))}
    (frames,) = run("ExVideoDecode", samples=samples, vae=loaded[2])
    between, _ = run("ExVideoInterpolate", images=frames, multiplier=2, model=model)
    run("ExVideoSave", images=between, format="png", filename_prefix="model/apart")
    run("ExVideoRender", samples=samples, vae=loaded[2], multiplier=2, model=model, format="png",
        filename_prefix="model/stream")  # fmt: skip
    apart, stream = (sorted((tmp_path / "model").glob(f"{name}*/*.png")) for name in ("apart", "stream"))
    assert len(apart) == len(stream) == 5
    assert all(Image.open(a).tobytes() == Image.open(b).tobytes() for a, b in zip(apart, stream, strict=True))
