"""The page's form of the shipped workflows, drawn from their API form and their sheet.

    python -m dev.drawn       writes workflows/*.json anew; it starts a ComfyUI to ask it for its nodes

Nodes stand in groups from left to right; a link that passes a group goes through a lane below all nodes. Groups of
nodes without inputs stand low, and links go over them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from dev import environment
from dev.environment import ROOT
from dev.errors import DevError
from dev.server import PACK, Server
from dev.sheets import MODELS, SHEETS, Sheet
from dev.workflow import SEED_NAMES
from exvideo_core.batch.workflow import inputs, is_widget, settings

WORKFLOWS = ROOT / "workflows"
NODE_WIDTH, NOTE_WIDTH, NOTE_HEIGHT = 340, 380, 360
ROW, WIDGET, TITLE = 20, 28, 40
"""Heights in pixels: of a socket, of a widget, of a node's title with the space above it."""
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
    nodes = [_Node.of(node_id, graph[node_id], object_info) for _, ids in sheet.groups for node_id in ids]
    by_id = {node.id: node for node in nodes}
    links = _links(graph, by_id)
    heads = [ids[0] for _, ids in sheet.groups]
    straight = [link for link in links if _is_straight(link, heads)]
    places, right = _placed(sheet, by_id, [(heads.index(link.source), heads.index(link.target)) for link in straight])
    bottom = max(places[node.id][1] + node.height for node in nodes)
    column = {node_id: at for at, (_, ids) in enumerate(sheet.groups) for node_id in ids}
    high = [at for at, (_, ids) in enumerate(sheet.groups) if _takes_links(ids, by_id)]
    passing = [
        link
        for link in links
        if link not in straight and any(column[link.source] < at < column[link.target] for at in high)
    ]
    reroutes, extensions = _lanes(sorted(passing, key=lambda link: places[link.source][1]), column, right, bottom)
    height = bottom + LANE * (len(passing) + 1) + MARGIN
    note = {
        "id": 1 + max(int(node.id) for node in nodes), "type": "MarkdownNote", "pos": [-NOTE_WIDTH - 60, HEAD],
        "size": [NOTE_WIDTH, NOTE_HEIGHT], "flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [],
        "properties": {}, "widgets_values": [sheet.note], "title": "What this does", "color": "#432",
        "bgcolor": "#653",
    }  # fmt: skip
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK}/{name}")),
        "revision": 0,
        "last_node_id": note["id"],
        "last_link_id": len(links),
        "nodes": [note, *(_drawn(node, places[node.id], order, links) for order, node in enumerate(nodes, start=1))],
        "links": [[at, int(s), out, int(t), slot, kind] for at, s, out, t, slot, kind in links],
        "groups": [
            {
                "id": at + 1, "title": title, "bounding": [right[at] - NODE_WIDTH - MARGIN, 0,
                NODE_WIDTH + 2 * MARGIN, height], "color": COLOUR, "font_size": 24, "flags": {},
            }
            for at, (title, _) in enumerate(sheet.groups)
        ],
        "config": {},
        "extra": {
            "ds": {"scale": 0.7, "offset": [NOTE_WIDTH + 120, 120]},
            "linkExtensions": extensions,
            "reroutes": reroutes,
        },
        "version": 0.4,
    }  # fmt: skip


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
                if settings(spec).get("control_after_generate") or name in SEED_NAMES:
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


def _placed(
    sheet: Sheet, nodes: Mapping[str, _Node], straight: list[tuple[int, int]]
) -> tuple[dict[str, tuple[int, int]], list[int]]:
    """Where each node stands, and the right edge of each group's nodes; `straight` links go over groups, under each
    other."""
    places: dict[str, tuple[int, int]] = {}
    right = []
    for at, (_, ids) in enumerate(sheet.groups):
        x = at * (NODE_WIDTH + 2 * MARGIN + GAP) + MARGIN
        y = HEAD + 60 * sum(source < at < target for source, target in straight)
        if at and not _takes_links(ids, nodes):
            y += OVER
        for node_id in ids:
            places[node_id] = (x, y)
            y += nodes[node_id].height + TITLE + 20
        right.append(x + NODE_WIDTH)
    return places, right


def _takes_links(group: list[str], nodes: Mapping[str, _Node]) -> bool:
    return any(nodes[node_id].sockets for node_id in group)


def _is_straight(link: _Link, heads: list[str]) -> bool:
    """Whether it goes along the top: from the first output to the first input of nodes that stand there."""
    return link.output == link.slot == 0 and link.source in heads and link.target in heads


def _lanes(
    links: list[_Link], column: Mapping[str, int], right: list[int], bottom: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two points for each link, where it goes down to its lane and where it comes up.

    Short ones take the upper lanes, and of one length those that come from above.
    """
    reroutes: list[dict[str, Any]] = []
    extensions = []
    for lane, link in enumerate(sorted(links, key=lambda link: column[link.target] - column[link.source])):
        y = bottom + LANE * (lane + 1)
        inset = 12 * lane
        down = right[column[link.source]] + MARGIN + GAP // 2 - inset
        up = right[column[link.target]] - NODE_WIDTH - MARGIN - GAP // 2 + inset
        first = len(reroutes) + 1
        reroutes.append({"id": first, "pos": [down, y], "linkIds": [link.id]})
        reroutes.append({"id": first + 1, "parentId": first, "pos": [up, y], "linkIds": [link.id]})
        extensions.append({"id": link.id, "parentId": first + 1})
    return reroutes, extensions


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
