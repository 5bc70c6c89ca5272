"""The page's form of the shipped workflows, drawn from their API form and their sheet.

    python -m dev.drawn       writes workflows/*.json anew; it starts a ComfyUI to ask it for its nodes

Nodes stand in groups from left to right; a link that passes a group goes along the top, or through a lane over or
below all nodes. Groups of nodes without inputs stand low, and links go over them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from dev import environment
from dev.environment import ROOT
from dev.errors import DevError
from dev.links import ROW, Lane, crossings, fewest_crossings
from dev.server import PACK, Server
from dev.sheets import MODELS, SHEETS, Sheet
from dev.workflow import SEED_NAMES
from exvideo_core.batch.workflow import inputs, is_widget, settings

WORKFLOWS = ROOT / "workflows"
NODE_WIDTH, NOTE_WIDTH, NOTE_HEIGHT = 340, 380, 360
WIDGET, TITLE = 28, 40
"""Heights in pixels: of a widget, of a node's title with the space above it."""
PICTURE, VIDEO, CURVE, TEXT = 240, 340, 260, 100
EXTRA = {
    "LoadImage": PICTURE, "LoadVideo": VIDEO, "ExVideoSave": VIDEO, "ExVideoRender": VIDEO, "ExVideoPostTune": CURVE,
    "CLIPTextEncode": TEXT,
}  # fmt: skip
"""Height of what a node shows beside its widgets."""
MARGIN, GAP, HEAD = 20, 90, 70
"""Of a group around its nodes; between groups; above the nodes of a group."""
LANE = 26
OVER = 100
"""Room for other links over a group."""
COLOUR = "#3f789e"


def draw(name: str, graph: Mapping[str, Any], sheet: Sheet, object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The page's form of a workflow.

    Args:
        name: of its file, without the ending.
        graph: its API form.
        sheet: its layout.
        object_info: what the server says about its nodes.
    """
    nodes = {id_: _Node.of(id_, graph[id_], object_info) for _, ids in sheet.groups for id_ in ids}
    links = _links(graph, nodes)
    heads = [ids[0] for _, ids in sheet.groups]
    column = {node_id: at for at, (_, ids) in enumerate(sheet.groups) for node_id in ids}
    high = [at for at, (_, ids) in enumerate(sheet.groups) if _takes_links(ids, nodes)]
    # Along the top: from an output of a loader that stands there to the input beside it.
    straight = [
        link
        for link in links
        if link.output == link.slot and {link.source, link.target} <= set(heads) and not nodes[link.source].sockets
    ]
    row = {node_id: at for _, ids in sheet.groups for at, node_id in enumerate(ids)}

    def drawn(along: list[_Link]) -> dict[str, Any]:
        passing = [
            link for link in links
            if link not in along and any(column[link.source] < at < column[link.target] for at in high)
        ]  # fmt: skip
        # Short ones nearest to the nodes, and of one length those that come from above.
        passing.sort(key=lambda link: (column[link.target] - column[link.source], row[link.source]))
        drawing = _Drawing(name, sheet, nodes, links, along, column, high)
        return fewest_crossings([link.id for link in passing], drawing.with_lanes)

    # As many straight as can be.
    ways = [list(some) for count in range(len(straight), -1, -1) for some in combinations(straight, count)]
    return min(map(drawn, ways), key=crossings)


class _Drawing(NamedTuple):
    """A workflow that is drawn but for the lanes of its links."""

    name: str
    sheet: Sheet
    nodes: dict[str, _Node]
    links: list[_Link]
    straight: list[_Link]
    column: dict[str, int]
    high: list[int]

    def with_lanes(self, lanes: list[Lane]) -> dict[str, Any]:
        over = sum(lane.over for lane in lanes)
        places, right = self._placed(HEAD + LANE * over)
        bottom = max(places[node.id][1] + node.height for node in self.nodes.values())
        reroutes, extensions = self._routes(lanes, right, HEAD + LANE * over - TITLE, bottom + LANE)
        height = bottom + LANE * (len(lanes) - over + 1) + MARGIN
        note = {
            "id": 1 + max(map(int, self.nodes)), "type": "MarkdownNote", "pos": [-NOTE_WIDTH - 60, HEAD],
            "size": [NOTE_WIDTH, NOTE_HEIGHT], "flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [],
            "properties": {}, "widgets_values": [self.sheet.note], "title": "What this does", "color": "#432",
            "bgcolor": "#653",
        }  # fmt: skip
        drawn = [
            _drawn(node, places[node.id], order, self.links) for order, node in enumerate(self.nodes.values(), start=1)
        ]
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK}/{self.name}")),
            "revision": 0,
            "last_node_id": note["id"],
            "last_link_id": len(self.links),
            "nodes": [note, *drawn],
            "links": [[at, int(s), out, int(t), slot, kind] for at, s, out, t, slot, kind in self.links],
            "groups": [
                {
                    "id": at + 1, "title": title, "bounding": [right[at] - NODE_WIDTH - MARGIN, 0,
                    NODE_WIDTH + 2 * MARGIN, height], "color": COLOUR, "font_size": 24, "flags": {},
                }
                for at, (title, _) in enumerate(self.sheet.groups)
            ],
            "config": {},
            "extra": {
                "ds": {"scale": 0.7, "offset": [NOTE_WIDTH + 120, 120]},
                "linkExtensions": extensions,
                "reroutes": reroutes,
            },
            "version": 0.4,
        }  # fmt: skip

    def _placed(self, top: int) -> tuple[dict[str, tuple[int, int]], list[int]]:
        """Where each node stands, and the right edge of each group's nodes; straight links go over groups, those of
        one node under those of another."""
        places: dict[str, tuple[int, int]] = {}
        right = []
        for at, (_, ids) in enumerate(self.sheet.groups):
            x = at * (NODE_WIDTH + 2 * MARGIN + GAP) + MARGIN
            y = top
            over = [link for link in self.straight if self.column[link.source] < at < self.column[link.target]]
            for target in {link.target for link in over}:
                y += 60 + (at in self.high) * ROW * max(link.slot for link in over if link.target == target)
            if at and at not in self.high:
                y += OVER
            for node_id in ids:
                places[node_id] = (x, y)
                y += self.nodes[node_id].height + TITLE + 20
            right.append(x + NODE_WIDTH)
        return places, right

    def _routes(
        self, lanes: list[Lane], right: list[int], over: int, below: int
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Two points for each link with a lane, where it comes to that and where it leaves it.

        Args:
            right: edge of each group's nodes.
            over, below: height of the lanes nearest to the nodes.
        """
        links = {link.id: link for link in self.links}
        reroutes: list[dict[str, Any]] = []
        extensions = []
        taken = {True: 0, False: 0}
        for lane in lanes:
            link, number = links[lane.link], taken[lane.over]
            taken[lane.over] += 1
            y = over - LANE * number if lane.over else below + LANE * number
            inset = 12 * number
            start = right[self.column[link.source]] + MARGIN + GAP // 2 - inset
            end = right[self.column[link.target]] - NODE_WIDTH - MARGIN - GAP // 2 + inset
            first = len(reroutes) + 1
            reroutes.append({"id": first, "pos": [start, y], "linkIds": [link.id]})
            reroutes.append({"id": first + 1, "parentId": first, "pos": [end, y], "linkIds": [link.id]})
            extensions.append({"id": link.id, "parentId": first + 1})
        return reroutes, extensions


class _Node(NamedTuple):
    """A node of the API form, with what its schema says."""

    id: str
    kind: str
    title: str | None
    values: Mapping[str, Any]
    sockets: list[tuple[str, str, bool]]
    """Name, type and whether it is optional; first those that are no widgets, then the widgets that are linked."""
    linked: frozenset[str]
    """Which of the sockets are widgets."""
    widgets: list[Any]
    """Their values as the page lists them."""
    outputs: list[tuple[str, str]]
    ours: bool

    @classmethod
    def of(cls, node_id: str, node: Mapping[str, Any], object_info: Mapping[str, Any]) -> _Node:
        kind, values = node["class_type"], node["inputs"]
        info = object_info[kind]
        specs, optional = inputs(info), info["input"].get("optional", {})
        widgets: list[Any] = []
        for name, spec in specs.items():
            if is_widget(spec):
                value = values[name]
                widgets.append(settings(spec).get("default") if _is_link(value) else value)
                if settings(spec).get("control_after_generate", name in SEED_NAMES):
                    widgets.append("fixed")
                if settings(spec).get("image_upload") or settings(spec).get("video_upload"):
                    widgets.append("image")  # the button's
        plain = [(name, _kind(spec), name in optional) for name, spec in specs.items() if not is_widget(spec)]
        linked = [(n, _kind(s), False) for n, s in specs.items() if is_widget(s) and _is_link(values.get(n))]
        title = node["_meta"]["title"]
        return cls(
            node_id,
            kind,
            title if title != info["display_name"] else None,
            values,
            plain + linked,
            frozenset(name for name, *_ in linked),
            widgets,
            list(zip(info["output_name"], info["output"], strict=True)),
            info["python_module"] == f"custom_nodes.{PACK}",
        )

    @property
    def height(self) -> int:
        rows = max(len(self.sockets) - len(self.linked), len(self.outputs))
        return ROW * rows + WIDGET * len(self.widgets) + EXTRA.get(self.kind, 0) + 20


class _Link(NamedTuple):
    id: int
    source: str
    output: int
    target: str
    slot: int
    kind: str


def _links(graph: Mapping[str, Any], nodes: Mapping[str, _Node]) -> list[_Link]:
    links: list[_Link] = []
    for node_id in graph:
        for slot, (name, kind, _) in enumerate(nodes[node_id].sockets):
            value = nodes[node_id].values.get(name)
            if _is_link(value):
                links.append(_Link(len(links) + 1, value[0], value[1], node_id, slot, kind))
    return links


def _takes_links(group: list[str], nodes: Mapping[str, _Node]) -> bool:
    return any(nodes[node_id].sockets for node_id in group)


def _drawn(node: _Node, place: tuple[int, int], order: int, links: list[_Link]) -> dict[str, Any]:
    into = {link.slot: link.id for link in links if link.target == node.id}
    inputs = []
    for slot, (name, kind, optional) in enumerate(node.sockets):
        drawn: dict[str, Any] = {"name": name, "type": kind}
        if name in node.linked:
            drawn["widget"] = {"name": name}
        elif optional:
            drawn["shape"] = 7
        inputs.append({**drawn, "link": into.get(slot)})
    outputs = [
        {
            "name": name, "type": kind, "slot_index": slot,
            "links": [link.id for link in links if (link.source, link.output) == (node.id, slot)] or None,
        }
        for slot, (name, kind) in enumerate(node.outputs)
    ]  # fmt: skip
    properties: dict[str, Any] = {"Node name for S&R": node.kind, "cnr_id": PACK if node.ours else "comfy-core"}
    names = [value for value in node.widgets if value in MODELS]
    if names:
        properties["models"] = [{"name": n, "url": MODELS[n][0], "directory": MODELS[n][1]} for n in names]
    drawn = {
        "id": int(node.id), "type": node.kind, "pos": list(place), "size": [NODE_WIDTH, node.height], "flags": {},
        "order": order, "mode": 0, "inputs": inputs, "outputs": outputs, "properties": properties,
        "widgets_values": node.widgets,
    }  # fmt: skip
    return {**drawn, "title": node.title} if node.title else drawn


def _is_link(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _kind(spec: list[Any]) -> str:
    return "COMBO" if isinstance(spec[0], list) else str(spec[0])


def drawn_workflows(object_info: Mapping[str, Any]) -> dict[Path, str]:
    """The text of every file of the page's form."""
    texts = {}
    for name, sheet in SHEETS.items():
        graph = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
        drawn = draw(name, graph, sheet, object_info)
        texts[WORKFLOWS / f"{name}.json"] = json.dumps(drawn, indent=1, ensure_ascii=False) + "\n"
    return texts


def main() -> int:
    """Command line: draw all."""
    try:
        ready = environment.ensure()
        with tempfile.TemporaryDirectory() as base, Server(ready, Path(base), cpu=True) as server:
            texts = drawn_workflows(server.get("/object_info", timeout=60))
    except DevError as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
