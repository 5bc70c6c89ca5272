import itertools

import pytest

from exvideo_core.plan import (
    Window,
    blend_weights,
    chain_segments,
    drifting_windows,
    overlapped_windows,
    window_positions,
    window_rows,
    window_size,
    window_weights,
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
    assert blend_weights(Window(4, 12), 20, centred=True) == [1, 3, 5, 7, 7, 5, 3, 1]
    assert blend_weights(Window(0, 8), 20, centred=True) == [15, 13, 11, 9, 7, 5, 3, 1]
    assert blend_weights(Window(0, 3), 3, centred=True) == [5, 5, 5]


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


@pytest.mark.parametrize("length", [1, 2, 5, 16])
def test_every_frame_of_a_chain_is_new_in_one_segment(length):
    for total, overlap in itertools.product(range(1, 60), range(1, max(length, 2))):
        if overlap >= length and total > length:
            continue
        segments = chain_segments(total, length, min(overlap, length - 1), 7)
        assert [frame for segment in segments for frame in range(*segment.new)] == list(range(total))
        assert segments[0].pinned == 0
        assert segments[0].seed == 7
        assert len({segment.seed for segment in segments}) == len(segments)
        for before, after in itertools.pairwise(segments):
            # What is given is what the segment before ends with.
            assert after.frames.start + after.pinned == before.frames.stop
            assert after.number == before.number + 1
            assert min(overlap, length - 1) <= after.pinned < after.frames.frames
        assert {segment.frames.frames for segment in segments} == {min(length, total)}
        assert {segment.pinned for segment in segments[1:-1]} <= {min(overlap, length - 1)}


def test_one_segment_is_the_whole_clip():
    for overlap in (0, 4):
        (segment,) = chain_segments(8, 8, overlap, 3)
        assert segment == (0, Window(0, 8), 0, 3)


@pytest.mark.parametrize(
    ("total", "length", "overlap", "told"),
    [
        (0, 8, 4, "no frames"),
        (9, 8, 8, "overlap = 8"),
        (9, 8, 0, "overlap of 1 to 7"),
        (9, 0, 0, "window = 0"),
        (9, 1, 0, "at least 2 frames.* raise segment_frames"),
        (9, 1, 1, "at least 2 frames.* raise segment_frames"),
    ],
)
def test_impossible_chains_are_refused(total, length, overlap, told):
    with pytest.raises(ExVideoError, match=told):
        chain_segments(total, length, overlap, 0)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize(("length", "overlap"), [(1, 0), (4, 1), (8, 0), (8, 3), (8, 7), (16, 8)])
def test_drifting_windows_cover_every_frame_at_every_step(length, overlap, loop):
    for total, step in itertools.product(range(1, 50), range(0, 30, 3)):
        windows = drifting_windows(total, length, overlap, step, loop)
        assert {frame for window in windows for frame in window} == set(range(total))
        assert {len(window) for window in windows} == {min(total, length)}
        for window in windows:
            follows = [(frame + 1) % total for frame in window[:-1]]
            assert window[1:] == follows
            assert loop or window == sorted(window)
        if not loop:
            for before, after in itertools.pairwise(windows):
                assert len(set(before) & set(after)) >= overlap or after[-1] == total - 1


def test_windows_begin_elsewhere_at_each_step():
    edges = [{window[0] for window in drifting_windows(200, 32, 8, step)} - {0, 168} for step in range(10)]
    assert all(not a & b for a, b in itertools.pairwise(edges))


def test_smooth_weights_of_neighbours_add_up():
    ours = window_weights(16, 6, True, True)
    theirs = window_weights(16, 6, True, True)
    assert ours == ours[::-1]
    assert ours[6:10] == [1.0] * 4
    for i in range(6):
        assert ours[10 + i] + theirs[i] == pytest.approx(1)
    assert window_weights(5, 2, False, False) == [1.0] * 5


@pytest.mark.parametrize(
    ("frames", "total", "loop", "rows"),
    [
        (range(4, 8), 12, False, [4, 5, 6, 7]),
        (range(4, 8), 20, False, [4, 5, 6, 7]),
        (range(15, 19), 20, False, [12, 13, 14, 15]),
        ([10, 11, 0, 1], 12, True, [12, 13, 14, 15]),
        (range(4), 12, True, [12, 13, 14, 15]),
    ],
)
def test_windows_beyond_the_table_take_its_last_rows(frames, total, loop, rows):
    """The first rows are for the beginning of a clip, the picture, which a window farther on or of a loop is not."""
    assert window_rows(frames, total, 16, loop=loop) == rows


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 16, 20, 24, 32, 42, 64, 170, 400])
def test_a_short_loop_takes_little_more_work_than_its_length(total):
    length, overlap = window_size(total, 128, 16, loop=True)
    assert 0 <= overlap < length <= max(total * 3 // 4, 1)
    windows = drifting_windows(total, length, overlap, 3, loop=True)
    assert sum(map(len, windows)) <= 3 * total


def test_windows_of_a_loop_that_it_does_not_shorten_share_what_they_are_asked_to():
    assert window_size(300, 128, 100, loop=True) == (128, 100)
    assert window_size(100, 128, 100, loop=True) == (75, 37)
    assert window_size(20, 128, 16) == (128, 16)
