"""The links of the shipped workflows cross no more than the order of the nodes' slots makes them."""

from __future__ import annotations

import json
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
    by Euler's formula, the least over the orders of links that share an output (of those, two at most are tried)."""
    around: dict[int, list[int]] = {}
    for node in page["nodes"]:
        into = [item["link"] for item in node["inputs"] if item["link"] is not None]
        out = [link for item in node["outputs"] for link in item["links"] or []]
        if into or out:
            # Clockwise from below on the left.
            around[node["id"]] = into[::-1] + out
    shared = [links for node in page["nodes"] for item in node["outputs"] if len(links := item["links"] or []) > 1]
    found = [_genus(around)]
    for links in shared:
        turned = dict(zip(links, links[::-1], strict=True))
        source = next(link[1] for link in page["links"] if link[0] == links[0])
        found.append(_genus({**around, source: [turned.get(link, link) for link in around[source]]}))
    return min(found)


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
