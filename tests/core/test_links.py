"""The links of the shipped workflows cross no more than the order of the nodes' slots makes them."""

from __future__ import annotations

import json
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest

from dev.links import crossings

WORKFLOWS = Path(__file__).parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
NEED_MORE = {
    # Sound passes the interpolation, on either side of which its link lies between two that meet there.
    "interpolate_video": 2,
    # Picture, image encoder and autoencoder of the first pass go on to the second, past all of it.
    "two_pass_upscale": 6,
}
"""Links that are drawn on a plane; the genus counts for surfaces with as many handles."""


def genus(page: dict[str, Any]) -> int:
    """How many crossings are needed at least: the genus of the graph with its links in their order around each node,
    by Euler's formula; links that share an output may lie in any order, and the least counts."""
    fewest = []
    outputs = [item["links"] or [] for node in page["nodes"] for item in node["outputs"]]
    for order in product(*map(permutations, outputs)):
        left = iter(order)
        around: dict[int, list[int]] = {}
        for node in page["nodes"]:
            into = [item["link"] for item in node["inputs"] if item["link"] is not None]
            out = [link for _ in node["outputs"] for link in next(left)]
            # Clockwise from below on the left.
            around[node["id"]] = into[::-1] + out
        fewest.append(_genus({node: links for node, links in around.items() if links}))
    return min(fewest)


def _genus(around: dict[int, list[int]]) -> int:
    ends: dict[int, list[tuple[int, int]]] = {}
    for node, links in around.items():
        for place, link in enumerate(links):
            ends.setdefault(link, []).append((node, place))
    other = {end: pair[1 - at] for pair in ends.values() for at, end in enumerate(pair)}
    faces, seen = 0, set()
    for end in other:
        faces += end not in seen
        while end not in seen:
            seen.add(end)
            node, place = other[end]
            end = node, (place + 1) % len(around[node])
    parts = _parts(around, other)
    return (2 * parts - len(around) + len(ends) - faces) // 2


def _parts(around: dict[int, list[int]], other: dict[tuple[int, int], tuple[int, int]]) -> int:
    left, parts = set(around), 0
    while left:
        parts, reached = parts + 1, [left.pop()]
        while reached:
            node = reached.pop()
            near = {other[node, place][0] for place in range(len(around[node]))} & left
            left -= near
            reached += near
    return parts


@pytest.mark.parametrize("name", NAMES)
def test_no_links_cross_that_need_not(name: str) -> None:
    page = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    assert crossings(page) == NEED_MORE.get(name, genus(page))


def test_links_that_need_not_cross_are_counted() -> None:
    page = json.loads((WORKFLOWS / "image_to_video.json").read_text(encoding="utf-8"))
    sampler = next(node for node in page["nodes"] if node["type"] == "ExVideoSampler")
    # Far below, where its links pass the lanes.
    sampler["pos"][1] += 5000
    assert crossings(page) > genus(page) == 1
