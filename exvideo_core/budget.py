"""How much memory work may take, and how it is cut to fit, in whole numbers. No tensors here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

from .plan import Window, overlapped_windows
from .types import ExVideoError


def chunks(count: int, bytes_each: int, budget: int | None, halo: int = 0) -> list[slice]:
    """Cut work on `count` entries so that a part stays within a budget; the parts differ by one entry at most.

    Args:
        count: entries, ≥ 1.
        bytes_each: working memory that one entry takes.
        budget: bytes for a part at once; None for no limit. At least one entry is worked on.
        halo: entries that a part needs beside its own.

    Returns:
        Slices in order, which cover 0 … count − 1.
    """
    largest = count if budget is None else max(budget // max(bytes_each, 1) - halo, 1)
    parts = -(-count // largest)
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


MIB = 2**20
BUDGETS: Mapping[str, tuple[int, int]] = {
    "auto": (64 * MIB, 2048 * MIB),
    "fast": (2048 * MIB, 8192 * MIB),
    "balanced": (512 * MIB, 512 * MIB),
    "low": (256 * MIB, 256 * MIB),
}
"""Least and greatest working memory, in bytes, of each way to go about a pass."""
CPU_BUDGET = 64 * MIB
"""What a pass on a processor takes: less is slower there, more gains nothing."""
HELD_MAPS, PARKED_MAPS = 5.3, 3.1
"""Maps of the UNet's first width that a pass holds at its worst: all skip connections and the middle block's; or, with
these parked in main memory, what goes into a transformer of the first level, what comes out and what lies between."""
LEARNED_MAPS, RELEARNED_MAPS = 900, 25
"""Maps of the UNet's first width that training keeps for the gradient: everything, or the inputs of layers alone."""
DECODER_MAPS, DECODER_FRAME_MAPS = 2, 10
"""Maps of the decoder's last width that a window holds at its worst, and that work on one frame takes at least."""


class Pass(NamedTuple):
    """How a pass of the UNet goes about memory: bytes to work in, and whether skip connections wait in main memory."""

    budget: int
    park: bool
    needed: int
    """Bytes that it takes at least, weights apart."""


def check_setting(memory: str) -> tuple[int, int]:
    """The entry of `BUDGETS` of this name; ExVideoError lists the names there are."""
    if memory not in BUDGETS:
        raise ExVideoError(f"There is no memory setting {memory}: choose {', '.join(BUDGETS)}.")
    return BUDGETS[memory]


def plan_pass(memory: str, one_map: int, free: int, can_park: bool = True, on_cpu: bool = False) -> Pass:
    """Fit a pass of the UNet into what is free; where that cannot be, the least that it takes.

    Args:
        memory: a name in `BUDGETS`.
        one_map: bytes of a map of the first level, all frames of it.
        free: bytes that the device has, weights apart.
        can_park: main memory is another than the device's.
        on_cpu: the device is the processor itself, which gains nothing by larger chunks.

    Raises:
        ExVideoError: no such name.
    """
    least, most = check_setting(memory)
    held, parked = (round(maps * one_map) for maps in (HELD_MAPS, PARKED_MAPS))
    usable = _usable(free)
    if on_cpu:
        return Pass(CPU_BUDGET if memory in ("auto", "low") else least, False, (held + least) * 10 // 9)
    # Parking costs the time to copy; so it is for those who ask for it, and for what would not fit otherwise.
    park = can_park and (memory == "low" or (memory != "fast" and held + least > usable))
    if park:
        held = parked
    # A power of two: what is free differs a little from pass to pass, and results round by the size of chunks.
    budget = 1 << (max(least, min(most, usable - held)).bit_length() - 1)
    return Pass(budget, park, (held + least) * 10 // 9)


def training_budget(memory: str, one_map: int, free: int) -> int | None:
    """Bytes to work in beside what training must keep; None to keep everything and compute nothing twice.

    Args:
        memory: a name in `BUDGETS`.
        one_map: bytes of a map of the first level, all frames of it.
        free: bytes that the device has, weights and parameters apart.

    Raises:
        ExVideoError: no such name.
    """
    least, most = check_setting(memory)
    if memory in ("auto", "fast") and LEARNED_MAPS * one_map <= _usable(free):
        return None
    return max(least, min(most, 512 * MIB, _usable(free) - RELEARNED_MAPS * one_map))


def _usable(free: int) -> int:
    """Bytes of those free to plan with: a tenth stays for what kernels allocate, and for what fragmentation takes."""
    return free * 9 // 10


class Decoding(NamedTuple):
    """How a window of latents is decoded: bytes to work in, and the tiles, in cells, that are decoded apart."""

    budget: int
    rows: list[Window]
    columns: list[Window]
    needed: int
    """Bytes that it takes at least, weights apart."""


TILE_OVERLAP = 8
"""Latent cells that neighbouring tiles share: 64 pixels."""


def plan_decoding(frames: int, height: int, width: int, one_cell: int, free: int, most: int) -> Decoding:
    """Fit the decoding of a window into what is free: in one piece if that can be, else in the fewest tiles.

    Args:
        frames: of the window.
        height, width: of the latents.
        one_cell: bytes of the decoder's last maps that belong to one latent cell of one frame.
        free: bytes that the device has, weights apart.
        most: bytes to work in that gain nothing any more.
    """
    rows, columns = [Window(0, height)], [Window(0, width)]
    while True:
        cells = rows[0].frames * columns[0].frames
        held, least = (maps * cells * one_cell for maps in (DECODER_MAPS * frames, DECODER_FRAME_MAPS))
        smaller = _halved(rows, columns)
        if held + least <= _usable(free) or smaller == (rows, columns):
            # A power of two where that is enough, as for a pass.
            budget = 1 << (max(1, min(most, _usable(free) - held)).bit_length() - 1)
            return Decoding(max(least, budget), rows, columns, (held + least) * 10 // 9)
        rows, columns = smaller


def smaller_decoding(plan: Decoding) -> Decoding:
    """The next thing to try when memory ran out: smaller chunks, then smaller tiles; the same plan after the last."""
    if plan.budget > 16 * MIB:
        return plan._replace(budget=plan.budget // 4)
    rows, columns = _halved(plan.rows, plan.columns)
    return plan._replace(rows=rows, columns=columns)


def _halved(rows: list[Window], columns: list[Window]) -> tuple[list[Window], list[Window]]:
    """Tiles of about half the size, cut along their longer side; the same ones where they are as small as can be."""
    longer = max(rows[0].frames, columns[0].frames)
    if longer < 4 * TILE_OVERLAP:
        return rows, columns

    def cut(axis: list[Window]) -> list[Window]:
        return overlapped_windows(axis[-1].stop, -(-(axis[0].frames + TILE_OVERLAP) // 2), TILE_OVERLAP)

    return (cut(rows), columns) if rows[0].frames == longer else (rows, cut(columns))
