"""Where windows of decoding meet: no worse than elsewhere, measured against a clip decoded whole."""

import pytest
import torch
from exvideo_pack.exvideo_core import svd, tiny
from exvideo_pack.exvideo_core.host import checkpoint

FRAMES, WINDOW, OVERLAP = 32, 8, 4
STRIDE = WINDOW - OVERLAP


def full_size_vae():
    weights = tiny.draw_checkpoint(svd.SVDLayout(), seed=3, part=svd.VAE_PREFIX)
    return checkpoint.narrow_vae(weights, svd.SVDLayout())


def moving_latents(side, seed=0, frames=FRAMES):
    """Latents that change from frame to frame as a video's do, not at random: waves that drift."""
    generator = torch.Generator().manual_seed(seed)
    time, y, x = torch.meshgrid(*(torch.arange(n).float() for n in (frames, side, side)), indexing="ij")
    channels = []
    for _ in range(4):
        waves = torch.zeros_like(time)
        for _ in range(6):
            a, b, c, phase = (2 * torch.rand(4, generator=generator) - 1).tolist()
            waves = waves + torch.sin(1.2 * a * x + 1.2 * b * y + 0.4 * c * time + 6 * phase)
        channels.append(waves)
    return torch.stack(channels, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "side", "seed", "frames"),
    [("tiny", 8, 0, FRAMES), ("tiny", 8, 1, FRAMES), ("tiny", 8, 2, FRAMES), ("full", 4, 0, FRAMES - WINDOW)],
)
def test_no_seams(loaded, run, size, side, seed, frames):
    """The error of every frame against the whole clip, by its place in the windows; the host's ways beside it."""
    vae = loaded[2] if size == "tiny" else full_size_vae()
    latents = moving_latents(side, seed, frames)
    network = vae.first_stage_model
    whole = vae.process_output(network.decode(latents).movedim(1, -1).float())
    given = {"samples": {"samples": latents}, "vae": vae, "window": WINDOW, "overlap": OVERLAP}
    (ours,) = run("ExVideoDecode", **given, centred_blend=True)
    (authors,) = run("ExVideoDecode", **given)
    chunks = vae.process_output(torch.cat([network.decode(part).movedim(1, -1) for part in latents.split(WINDOW)]))
    tiled = vae.decode_tiled(latents, tile_x=64, tile_y=64).reshape(whole.shape)

    def by_frame(frames):
        return (frames - whole).square().mean((1, 2, 3)).sqrt() / whole.std()

    # Away from the ends of the clip, which have no neighbours either way.
    inner = torch.arange(WINDOW, frames - WINDOW)
    # Windows begin at multiples of the stride, so these frames are a window's first or last; of the host's, every 8th.
    at_edge = torch.isin(inner % STRIDE, torch.tensor([0, STRIDE - 1]))
    at_chunk = torch.isin(inner % WINDOW, torch.tensor([0, WINDOW - 1]))
    ways = {"ours": ours, "authors": authors, "chunks": chunks, "tiled": tiled}
    errors = {name: by_frame(frames)[inner] for name, frames in ways.items()}
    jumps = {
        name: ((frames[1:] - frames[:-1]) - (whole[1:] - whole[:-1])).square().mean((1, 2, 3)).sqrt() / whole.std()
        for name, frames in ways.items()
    }
    print(f"\n{size}: relative error at the edges of windows / inside them")
    for name, blend in (("ours", "centred blend"), ("authors", "the authors' blend")):
        print(f"  ExVideo Decode, {WINDOW} and {OVERLAP}, {blend}: {errors[name][at_edge].mean():.3f} / ", end="")
        print(f"{errors[name][~at_edge].mean():.3f}; of the change from frame to frame {jumps[name].max():.3f} at most")
    print(f"  ComfyUI in chunks of {WINDOW}: {errors['chunks'][at_chunk].mean():.3f} / ", end="")
    print(f"{errors['chunks'][~at_chunk].mean():.3f}; {jumps['chunks'].max():.3f}")
    print(f"  ComfyUI tiled: {errors['tiled'].mean():.3f}; {jumps['tiled'].max():.3f}")
    assert errors["ours"][at_edge].mean() <= errors["ours"][~at_edge].mean()
    assert errors["ours"].mean() < errors["authors"].mean()
    for name in ("ours", "authors"):
        assert errors[name].max() < errors["chunks"][at_chunk].mean()
        assert jumps[name].max() < jumps["chunks"].max()


def test_a_loop_has_no_seam(loaded, run):
    """The ends of a loop decode as well as its middle: against three rounds decoded whole."""
    vae = loaded[2]
    latents = moving_latents(8)[: 4 * STRIDE]
    rounds = vae.first_stage_model.decode(latents.repeat(3, 1, 1, 1)).movedim(1, -1).float()
    whole = vae.process_output(rounds)[len(latents) : 2 * len(latents)]
    given = {"samples": {"samples": latents}, "vae": vae, "window": WINDOW, "overlap": OVERLAP}
    errors = [
        (run("ExVideoDecode", **given, loop=loop)[0] - whole).square().mean((1, 2, 3)).sqrt() for loop in (True, False)
    ]
    ends = torch.tensor([0, 1, -2, -1])
    middle = errors[0][STRIDE:-STRIDE].mean()
    print(
        f"\nerror at the ends of a loop {errors[0][ends].mean():.4f}, of a line {errors[1][ends].mean():.4f}, ", end=""
    )
    print(f"in the middle {middle:.4f}")
    assert errors[0][ends].mean() < 1.1 * middle
    assert errors[1][ends].mean() > 1.5 * errors[0][ends].mean()


def test_the_result_does_not_depend_on_what_is_free(loaded, run, monkeypatch):
    import comfy.model_management

    samples = {"samples": moving_latents(8)[:12]}
    (plenty,) = run("ExVideoDecode", samples=samples, vae=loaded[2])
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: 64 * 2**20)
    (little,) = run("ExVideoDecode", samples=samples, vae=loaded[2])
    assert (little - plenty).abs().max() < 1e-5
