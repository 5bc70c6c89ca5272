"""SVD's decoder in chunks, in tiles, and when memory runs out."""

import comfy.model_management
import pytest
import torch
from exvideo_pack.exvideo_core import budget, chunked
from exvideo_pack.exvideo_core.host import decoder
from exvideo_pack.exvideo_core.host.memory import OUT_OF_MEMORY
from exvideo_pack.exvideo_core.host.weights import Lent, at_hand

from benchmarks.counted import GIB, MIB, SIZES, decoder_peak
from benchmarks.fake import our_decoder


def latents(frames, height, width, seed=0):
    return torch.randn(frames, 4, height, width, generator=torch.Generator().manual_seed(seed))


def error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize(("frames", "height", "width"), [(8, 8, 8), (1, 8, 16), (5, 9, 7), (3, 2, 3)])
@pytest.mark.parametrize("size", [None, 1, 300_000])
def test_chunks_decode_as_the_host_does(loaded, frames, height, width, size):
    network, x = loaded[2].first_stage_model, latents(frames, height, width)
    ours = chunked.decode(chunked.Work(size, Lent, at_hand), network.decoder, x)
    assert error(ours, network.decode(x)) < 3e-6


@pytest.fixture
def short_of(monkeypatch):
    """Let so many bytes be free, as the host tells; sometimes it tells what torch has of it, too."""

    def free_memory(free):
        return lambda _device=None, torch_free_too=False: (free, free) if torch_free_too else free

    return lambda free: monkeypatch.setattr(comfy.model_management, "get_free_memory", free_memory(free))


def test_tiles_only_where_a_frame_does_not_fit(loaded, run, short_of, caplog):
    samples = {"samples": latents(3, 40, 24)}
    (whole,) = run("ExVideoDecode", samples=samples, vae=loaded[2])
    assert "ExVideo" not in caplog.text
    short_of(2**20)
    (tiled,) = run("ExVideoDecode", samples=samples, vae=loaded[2])
    assert [record.message for record in caplog.records if "2 blended tiles" in record.message]
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.1
    assert not torch.equal(tiled, whole)


def test_decoding_goes_on_when_memory_runs_out(loaded, run, monkeypatch, caplog):
    samples = {"samples": latents(9, 8, 8)}
    (expected,) = run("ExVideoDecode", samples=samples, vae=loaded[2])
    budgets = []

    def fail(work, network, x):
        budgets.append(work.budget)
        if len(budgets) == 1:
            raise OUT_OF_MEMORY("CUDA out of memory")
        return chunked.decode(work, network, x)

    monkeypatch.setattr(decoder, "decode", fail)
    (frames,) = run("ExVideoDecode", samples=samples, vae=loaded[2])
    assert (frames - expected).abs().max() < 1e-5
    assert budgets == [64 * MIB, *[16 * MIB] * 2]
    assert sum("goes on in smaller chunks" in record.message for record in caplog.records) == 1

    def always(work, network, x):
        raise OUT_OF_MEMORY("CUDA out of memory")

    monkeypatch.setattr(decoder, "decode", always)
    with pytest.raises(OUT_OF_MEMORY):
        run("ExVideoDecode", samples=samples, vae=loaded[2])


def test_the_host_asks_for_what_a_window_takes(loaded, run, monkeypatch):
    asked = []
    load = comfy.model_management.load_models_gpu

    def listen(models, memory_required=0, **options):
        asked.append(memory_required)
        return load(models, memory_required=memory_required, **options)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", listen)
    vae, x = loaded[2], latents(9, 16, 16)
    run("ExVideoDecode", samples={"samples": x}, vae=vae)
    assert 0 < asked[0] < vae.memory_used_decode(x.shape, vae.vae_dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "free", "goal"), [("1024×576", 4.5, 4), ("1024×576", 2.2, 2), ("1024×1024", 8, 8)])
def test_a_window_at_the_real_size_fits_what_is_free(size, free, goal):
    """8 frames at SVD's own width in half precision, counted on fake tensors."""
    height, width = SIZES[size]
    plan = budget.plan_decoding(8, height, width, 128 * 64 * 2, int(free * GIB), 2 * GIB)
    tile = plan.rows[0].frames, plan.columns[0].frames
    with torch.inference_mode(False):
        peak = decoder_peak(lambda: our_decoder(plan.budget), 8, tile)
    print(f"\n{size}, {free} GiB free: {len(plan.rows)}×{len(plan.columns)} tiles, {peak:.2f} GiB")
    assert peak <= goal


def test_a_model_that_was_sent_away_meanwhile_is_loaded_again(loaded):
    """By another one that runs between windows, such as one that interpolates."""
    vae, x = loaded[2], latents(4, 8, 8)
    decode = decoder.frame_decoder(vae, x, 4)
    comfy.model_management.unload_all_models()
    decode(x)
    assert any(entry.model is vae.patcher for entry in comfy.model_management.current_loaded_models)
