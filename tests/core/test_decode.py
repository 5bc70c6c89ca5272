import pytest
import torch

from exvideo_core.decode import decode_tiles, decode_windows, decoded_frames
from exvideo_core.plan import loop_window, overlapped_windows
from exvideo_core.types import ExVideoError


def upscale(latents):
    """A decoder without temporal layers: every window gives the same frame."""
    return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3).movedim(1, -1)


@pytest.mark.parametrize("frames", [1, 3, 7, 8, 9, 12, 23, 40])
@pytest.mark.parametrize(("window", "overlap"), [(8, 4), (8, 0), (1, 0), (8, 7), (16, 4)])
@pytest.mark.parametrize("centred", [False, True])
def test_blending_changes_nothing_where_windows_agree(frames, window, overlap, centred):
    latents = torch.randn(frames, 4, 2, 3)
    decoded = decode_windows(latents, upscale, window, overlap, centred=centred)
    torch.testing.assert_close(decoded, upscale(latents))


@pytest.mark.parametrize(("centred", "between"), [(False, [0.2, 0.4, 0.6, 0.8]), (True, [0.125, 0.375, 0.625, 0.875])])
def test_the_blend_is_linear(centred, between):
    # A decoder that knows only which window it is in: frame 4 … 7 go from window 0 to window 1.
    calls = iter(range(2))

    def number(latents):
        return torch.full((len(latents), 1, 1, 3), float(next(calls)))

    decoded = decode_windows(torch.zeros(12, 4, 1, 1), number, centred=centred)
    torch.testing.assert_close(decoded[:, 0, 0, 0], torch.tensor([0] * 4 + between + [1] * 4).float())


def test_progress_counts_windows_and_may_stop():
    seen = []
    decode_windows(torch.zeros(16, 4, 1, 1), upscale, on_window=lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_windows(torch.zeros(16, 4, 1, 1), upscale, on_window=stop)


def around(latents):
    """A decoder that looks at the frame before and the one after, as far as the window has them."""
    blurred = torch.nn.functional.avg_pool1d(latents.flatten(1).T[None], 3, 1, 1, count_include_pad=False)
    return upscale(blurred[0].T.reshape(latents.shape))


@pytest.mark.parametrize(("frames", "window", "overlap"), [(16, 8, 4), (5, 8, 4), (13, 6, 2), (1, 8, 4), (9, 3, 0)])
def test_a_loop_has_no_first_frame(frames, window, overlap):
    latents = torch.randn(frames, 4, 2, 2)
    whole = decode_windows(latents, upscale, window, overlap, loop=True)
    torch.testing.assert_close(whole, upscale(latents))
    if overlap > 1 and frames % (window - overlap) == 0:  # turned so far, the same frames share windows
        decoded, turned = (
            decode_windows(latents.roll(turn, 0), around, window, overlap, loop=True) for turn in (0, window - overlap)
        )
        torch.testing.assert_close(turned, decoded.roll(window - overlap, 0))
        assert (decode_windows(latents, around, window, overlap) - decoded)[0].abs().max() > 0.01


@pytest.mark.parametrize(("frames", "window", "overlap"), [(4, 1024, 0), (4, 1024, 1000), (40, 1024, 8), (40, 12, 4)])
def test_a_large_window_does_not_go_round_and_round(frames, window, overlap):
    decoded = 0

    def count(latents):
        nonlocal decoded
        decoded += len(latents)
        assert len(latents) <= loop_window(frames, window) <= max(frames, 16)
        return upscale(latents)

    latents = torch.randn(frames, 4, 2, 2)
    torch.testing.assert_close(decode_windows(latents, count, window, overlap, loop=True), upscale(latents))
    assert decoded <= 5 * max(frames, 16) * (16 if overlap == 1000 else 1)


def test_no_frames_are_refused():
    with pytest.raises(ExVideoError, match="no frames"):
        decode_windows(torch.zeros(0, 4, 1, 1), upscale)


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), [(20, 30, 12, 8), (9, 7, 9, 2), (16, 16, 10, 1)])
def test_tiles_blend_to_the_whole(height, width, tile, overlap):
    latents = torch.randn(3, 4, height, width)
    rows, columns = (overlapped_windows(n, tile, overlap) for n in (height, width))
    torch.testing.assert_close(decode_tiles(latents, upscale, rows, columns), upscale(latents))


def test_tiles_cross_over_pixel_by_pixel():
    # A decoder that knows only which tile it is in: columns 4 … 7 go from tile 0 to tile 1, 8 pixels a column.
    calls = iter(range(2))

    def decode(tile):
        return torch.full((1, 8 * tile.shape[2], 8 * tile.shape[3], 3), float(next(calls)))

    rows, columns = overlapped_windows(8, 8, 4), overlapped_windows(12, 8, 4)
    line = decode_tiles(torch.zeros(1, 4, 8, 12), decode, rows, columns)[0, 30, :, 0]
    assert not line[:32].any()
    torch.testing.assert_close(line[32:64], torch.arange(1, 33) / 33)
    assert line[64:].eq(1).all()


@pytest.mark.parametrize(("frames", "window", "overlap"), [(1, 8, 4), (23, 8, 4), (23, 8, 0), (40, 16, 12)])
def test_a_frame_comes_as_soon_as_its_windows_are_done(frames, window, overlap):
    latents = torch.randn(frames, 4, 2, 3)
    begun = []

    def decode(part):
        begun.append(len(part))
        return upscale(part)

    for number, frame in enumerate(decoded_frames(latents, decode, window, overlap)):
        torch.testing.assert_close(frame, upscale(latents[number : number + 1])[0])
        windows = overlapped_windows(frames, window, overlap)
        assert len(begun) == sum(w.start <= number for w in windows)
