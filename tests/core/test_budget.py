import itertools

import pytest

from exvideo_core.budget import (
    BUDGETS,
    DECODER_FRAME_MAPS,
    DECODER_MAPS,
    HELD_MAPS,
    MIB,
    PARKED_MAPS,
    RELEARNED_MAPS,
    TILE_OVERLAP,
    chunks,
    plan_decoding,
    plan_pass,
    smaller_decoding,
    training_budget,
)
from exvideo_core.types import ExVideoError

GIB = 2**30
SIZES = [(64, 64), (72, 128), (128, 128)]


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


def map_bytes(height, width, frames=128):
    return 320 * frames * height * width * 2


@pytest.mark.parametrize("gib", [6, 8, 12, 16, 24, 80])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_pass_fits_what_is_free(gib, height, width):
    """128 frames in half precision: all of a pass within nine tenths of what the weights leave, or the least there is.

    Of the weights, the host keeps in main memory what a pass's least needs for itself.
    """
    one_map = map_bytes(height, width)
    least = plan_pass("auto", one_map, 0).needed
    assert least < gib * GIB, "even the smallest card can do the largest size"
    free = max(gib * GIB - int(3.47 * GIB), least)
    plan = plan_pass("auto", one_map, free)
    held = (PARKED_MAPS if plan.park else HELD_MAPS) * one_map
    assert held + plan.budget <= free * 0.9 + 1
    assert 64 * MIB <= plan.budget <= 2048 * MIB
    # Not parked without need.
    assert plan.park == (HELD_MAPS * one_map + 64 * MIB > free * 9 // 10)
    assert plan.needed <= free


def test_a_big_card_takes_big_chunks():
    for height, width in SIZES:
        plan = plan_pass("auto", map_bytes(height, width), 76 * GIB)
        assert (plan.budget, plan.park) == (2048 * MIB, False)


def test_passes_with_a_little_more_or_less_free_are_cut_alike():
    """What is free differs from pass to pass, and results round by the size of chunks."""
    plans = [plan_pass("auto", map_bytes(72, 128), free) for free in range(GIB, 12 * GIB, 100 * MIB)]
    assert {plan.budget for plan in plans} == {size * MIB for size in (64, 128, 256, 512, 1024, 2048)}


def test_settings_of_memory():
    one_map = map_bytes(64, 64)
    assert plan_pass("low", one_map, 80 * GIB)[:2] == (256 * MIB, True)
    assert plan_pass("low", one_map, 80 * GIB, can_park=False)[:2] == (256 * MIB, False)
    assert plan_pass("low", one_map, 80 * GIB, on_cpu=True)[:2] == (64 * MIB, False)
    assert plan_pass("balanced", one_map, 80 * GIB)[:2] == (512 * MIB, False)
    assert plan_pass("balanced", one_map, GIB)[:2] == (512 * MIB, True)
    assert plan_pass("fast", one_map, GIB)[:2] == (2048 * MIB, False)
    assert plan_pass("fast", one_map, 80 * GIB).budget > plan_pass("auto", one_map, 80 * GIB).budget
    assert plan_pass("auto", one_map, 80 * GIB, on_cpu=True)[:2] == (64 * MIB, False)
    assert plan_pass("low", one_map, 0).needed < plan_pass("fast", one_map, 0).needed
    with pytest.raises(ExVideoError, match="choose auto, fast, balanced, low"):
        plan_pass("huge", 0, 0)


@pytest.mark.parametrize("gib", [0.2, 0.5, 1, 2, 4, 8, 80])
@pytest.mark.parametrize(("height", "width"), [*SIZES, (9, 200), (8, 8)])
def test_a_window_is_decoded_within_what_is_free(gib, height, width):
    frames, one_cell, free = 8, 128 * 64 * 2, int(gib * GIB)
    plan = plan_decoding(frames, height, width, one_cell, free, 2048 * MIB)
    assert {i for w in plan.rows for i in range(w.start, w.stop)} == set(range(height))
    assert {i for w in plan.columns for i in range(w.start, w.stop)} == set(range(width))
    for axis in (plan.rows, plan.columns):
        assert all(before.stop - after.start == TILE_OVERLAP for before, after in itertools.pairwise(axis))
    cells = plan.rows[0].frames * plan.columns[0].frames
    least = (DECODER_MAPS * frames + DECODER_FRAME_MAPS) * cells * one_cell
    whole = (DECODER_MAPS * frames + DECODER_FRAME_MAPS) * height * width * one_cell
    # Tiles only where one piece does not fit, and then as large as can be.
    assert (len(plan.rows) * len(plan.columns) == 1) == (whole <= free * 9 // 10 or max(height, width) < 32)
    fits = DECODER_MAPS * frames * cells * one_cell + plan.budget <= free * 0.9 + 1
    assert fits or max(plan.rows[0].frames, plan.columns[0].frames) < 4 * TILE_OVERLAP
    assert plan.needed >= least


def test_a_little_more_or_less_that_is_free_changes_nothing():
    """Results round by the size of chunks, on a GPU."""
    plans = {plan_decoding(8, 64, 64, 128 * 64 * 2, int(gib * GIB), 2048 * MIB).budget for gib in (2.9, 3.0, 3.1)}
    assert len(plans) == 1


def test_decoding_that_runs_out_tries_smaller_chunks_then_smaller_tiles():
    plan = plan_decoding(8, 72, 128, 128 * 64 * 2, 80 * GIB, 2048 * MIB)
    seen = []
    while (smaller := smaller_decoding(plan)) != plan:
        plan = smaller
        seen.append((plan.budget // MIB, len(plan.rows) * len(plan.columns)))
    assert seen[:5] == [(512, 1), (128, 1), (32, 1), (8, 1), (8, 2)]
    assert seen[-1][1] > 4
    assert max(plan.rows[0].frames, plan.columns[0].frames) < 4 * TILE_OVERLAP


@pytest.mark.parametrize("memory", BUDGETS)
def test_training_keeps_everything_where_that_fits(memory):
    """But not where a person has asked for less."""
    assert (training_budget(memory, MIB, 2000 * MIB) is None) == (memory in ("auto", "fast"))
    assert training_budget(memory, MIB, 500 * MIB) is not None


@pytest.mark.parametrize("memory", BUDGETS)
@pytest.mark.parametrize("gib", [0, 2, 8, 9, 16])
def test_training_works_within_what_a_setting_allows(memory, gib):
    """128 frames at 512×512, in half precision; beside the inputs of layers, or in the least there is."""
    least, one_map, free = BUDGETS[memory][0], 320 * MIB, gib * 1024 * MIB
    budget = training_budget(memory, one_map, free)
    assert least <= budget <= max(least, 512 * MIB)
    assert budget == least or RELEARNED_MAPS * one_map + budget <= free * 0.9


def test_training_knows_no_other_setting():
    with pytest.raises(ExVideoError, match="no memory setting huge"):
        training_budget("huge", MIB, MIB)
