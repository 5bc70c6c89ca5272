import itertools

import pytest

from exvideo_core.plan import Window, blend_weights, overlapped_windows, window_positions
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


def test_windows_keep_their_place_or_start_anew():
    assert window_positions([5, 6, 7], 8, 8) == [5, 6, 7]
    assert window_positions([6, 7, 0], 8, 8) == [6, 7, 0]
    assert window_positions([5, 6, 7], 9, 8) == [0, 1, 2]
    assert window_positions([4, 5, 6, 7], 9, 8, leads_in=True) == [0, 0, 1, 2]
    assert window_positions([4, 5, 6, 7], 8, 8, leads_in=True) == [4, 5, 6, 7]
