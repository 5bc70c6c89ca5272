"""Where the links of a drawn workflow cross, and a way for each past the nodes between, so that few do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise, product
from typing import Any, NamedTuple

ROW = 20
"""Height in pixels of a socket."""
Point = tuple[float, float]


class Lane(NamedTuple):
    """How a link passes groups: over or below all nodes. The first of a side's lanes is nearest to the nodes."""

    link: int
    over: bool


def fewest_crossings(links: Sequence[int], draw: Callable[[list[Lane]], dict[str, Any]]) -> dict[str, Any]:
    """The drawing of which the fewest links cross; where that is open, one with its lanes below, in the given order.

    Args:
        links: that need a lane.
        draw: draws a workflow with these lanes.
    """
    ways = [
        [Lane(link, over) for link, over in zip(links, sides, strict=True)]
        for sides in product((False, True), repeat=len(links))
    ]
    counted = [crossings(draw(lanes)) for lanes in ways]
    fewest = min(counted)
    lanes = ways[counted.index(fewest)]
    mended = True
    while mended and fewest:
        mended = False
        for other in _neighbours(lanes):
            found = crossings(draw(other))
            if found < fewest:
                lanes, fewest, mended = other, found, True
                break
    return draw(lanes)


def _neighbours(lanes: list[Lane]) -> list[list[Lane]]:
    """The same with one lane on the other side, or elsewhere in the order."""
    flipped = [[lane._replace(over=lane.over != (at == i)) for at, lane in enumerate(lanes)] for i in range(len(lanes))]
    moved = []
    for i, j in product(range(len(lanes)), repeat=2):
        rest = lanes[:i] + lanes[i + 1 :]
        moved.append([*rest[:j], lanes[i], *rest[j:]])
    return moved + flipped


def crossings(page: dict[str, Any]) -> int:
    """How often links cross that come from different outputs, drawn straight from slot to point to slot.

    Args:
        page: a workflow in the page's form.
    """
    nodes = {node["id"]: node for node in page["nodes"]}
    points = {point["id"]: point for point in page["extra"]["reroutes"]}
    last = {item["id"]: item["parentId"] for item in page["extra"]["linkExtensions"]}

    def slot(node: int, side: int, number: int) -> Point:
        (x, y), width = nodes[node]["pos"], nodes[node]["size"][0]
        return x + side * width, y + ROW * (number + 0.7)

    paths = []
    for link, source, output, target, number, _ in page["links"]:
        way, at = [slot(target, 0, number)], last.get(link)
        while at is not None:
            way.append(tuple(points[at]["pos"]))
            at = points[at].get("parentId")
        paths.append(((source, output), [slot(source, 1, output), *reversed(way)]))
    return sum(
        _cross(*first, *second)
        for (one, way), (other, another) in combinations(paths, 2)
        if one != other
        for first in pairwise(way)
        for second in pairwise(another)
    )


def _cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    def side(p: Point, q: Point, r: Point) -> bool:
        return (q[0] - p[0]) * (r[1] - p[1]) > (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) != side(a, b, d) and side(c, d, a) != side(c, d, b)
