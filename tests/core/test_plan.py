import itertools

import pytest

from exvideo_core.plan import (
    MIB,
    Window,
    blend_weights,
    chunks,
    held_bytes,
    overlapped_windows,
    window_positions,
    working_budget,
)
from exvideo_core.types import ExVideoError


@pytest.mark.parametrize("window", range(1, 10))
def test_windows_cover_every_frame_and_none_is_useless(window):
    for frames, overlap in itertools.product(range(1, 40), range(window)):
        windows = overlapped_windows(frames, window, overlap)
        assert windows[0].start == 0
        assert windows[-1].stop == frames
        for before, after in itertools.pairwise(windows):
            assert before.frames == window
            assert after.start == before.stop - overlap
            assert after.stop > before.stop
        assert all(1 <= w.frames <= window for w in windows)


def test_the_reference_windows():
    # Hand-counted from the reference's rule: window 8, stride 4, and a window that adds no frame is left out.
    assert overlapped_windows(18, 8, 4) == [Window(0, 8), Window(4, 12), Window(8, 16), Window(12, 18)]
    assert overlapped_windows(8, 8, 4) == [Window(0, 8)]


def test_blend_weights_ramp_where_a_neighbour_follows():
    assert blend_weights(Window(4, 12), 20) == [1, 2, 3, 4, 4, 3, 2, 1]
    assert blend_weights(Window(0, 8), 20) == [8, 7, 6, 5, 4, 3, 2, 1]
    assert blend_weights(Window(12, 20), 20) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert blend_weights(Window(0, 3), 3) == [3, 3, 3]


@pytest.mark.parametrize(
    ("frames", "window", "overlap", "told"),
    [(0, 8, 4, "no frames"), (8, 0, 0, "window = 0"), (8, 4, 4, "overlap = 4"), (8, 4, -1, "overlap = -1")],
)
def test_impossible_plans_are_refused(frames, window, overlap, told):
    with pytest.raises(ExVideoError, match=told):
        overlapped_windows(frames, window, overlap)


@pytest.mark.parametrize("count", [1, 2, 7, 128])
@pytest.mark.parametrize("budget", [None, 0, 10, 35, 100, 10_000])
@pytest.mark.parametrize("halo", [0, 2])
def test_chunks_cover_all_and_stay_within_the_budget(count, budget, halo):
    parts = chunks(count, 10, budget, halo)
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1
    if budget is None:
        assert sizes == [count]
    else:
        assert all(size == 1 or (size + halo) * 10 <= budget for size in sizes)


def test_windows_keep_their_place_or_start_anew():
    assert window_positions([5, 6, 7], 8, 8) == [5, 6, 7]
    assert window_positions([6, 7, 0], 8, 8) == [6, 7, 0]
    assert window_positions([5, 6, 7], 9, 8) == [0, 1, 2]
    assert window_positions([4, 5, 6, 7], 9, 8, leads_in=True) == [0, 0, 1, 2]
    assert window_positions([4, 5, 6, 7], 8, 8, leads_in=True) == [4, 5, 6, 7]


@pytest.mark.parametrize("gib", [6, 8, 12, 16, 24, 80])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 128), (128, 128)])
def test_a_pass_fits_what_is_free(gib, height, width):
    """128 frames in half precision, beside 3.5 GiB of weights."""
    free = int((gib - 3.5) * 2**30)
    held = held_bytes(128, height, width, 320, 2)
    budget = working_budget("auto", held, free)
    assert budget >= 64 * MIB
    fits = held + 64 * MIB <= free * 9 // 10
    assert fits == (held + budget <= free * 9 // 10)
    # What cannot be made to fit by chunks: the largest sizes on the smallest cards.
    assert fits == (held / 2**30 + 0.0625 <= 0.9 * (gib - 3.5))


def test_settings_of_memory():
    assert working_budget("low", 0, 80 * 2**30) == 64 * MIB
    assert working_budget("balanced", 0, 80 * 2**30) == 512 * MIB
    assert working_budget("fast", 0, 80 * 2**30) > working_budget("auto", 0, 80 * 2**30) == 2048 * MIB
    assert working_budget("auto", 0, 80 * 2**30, on_cpu=True) == 64 * MIB
    with pytest.raises(ExVideoError, match="choose auto, fast, balanced, low"):
        working_budget("huge", 0, 0)
