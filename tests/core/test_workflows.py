"""The shipped workflows fit the nodes, in both their forms.

The nodes' schemas are read from their source, so that no ComfyUI is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dev.schemas import Source

WORKFLOWS = Path(__file__).parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
NODES = {node.id: node for node in Source().nodes}
NOTES = {"Note", "MarkdownNote"}


@pytest.fixture(name="name", params=NAMES)
def _name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(name="api")
def _api(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(name="page")
def _page(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def _is_link(value: Any) -> bool:
    return isinstance(value, list)


def test_every_workflow_has_both_forms() -> None:
    assert sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json")) == NAMES


def test_api_workflow_sets_every_input(name: str, api: dict[str, Any]) -> None:
    for node in api.values():
        assert node["_meta"]["title"]
        if node["class_type"] not in NODES:
            continue
        declared = NODES[node["class_type"]].inputs
        needed = {name for name, item in declared.items() if not item.fields.get("optional")}
        assert needed <= set(node["inputs"]) <= set(declared), node["class_type"]
        for key, value in node["inputs"].items():
            # The first one is what the nodes' defaults make; the others say what they change in their notes.
            if name == "image_to_video" and not _is_link(value) and "default" in declared[key].fields:
                assert value == declared[key].fields["default"], (node["class_type"], key)


def test_api_links_lead_to_outputs_of_the_right_type(api: dict[str, Any]) -> None:
    for node in api.values():
        for name, value in node["inputs"].items():
            source = NODES.get(api[value[0]]["class_type"]) if _is_link(value) else None
            if source is not None and node["class_type"] in NODES:
                wanted = NODES[node["class_type"]].inputs[name].type
                assert source.outputs[value[1]][1] == wanted, (node["class_type"], name)


def test_both_forms_hold_the_same_nodes(api: dict[str, Any], page: dict[str, Any]) -> None:
    drawn = {str(node["id"]): node["type"] for node in page["nodes"] if node["type"] not in NOTES}
    assert drawn == {node_id: node["class_type"] for node_id, node in api.items()}
    assert page["last_node_id"] == max(node["id"] for node in page["nodes"])
    assert page["last_link_id"] == max(link[0] for link in page["links"])


def test_both_forms_hold_the_same_links(api: dict[str, Any], page: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in page["nodes"]}
    drawn = set()
    for link, source, output, target, slot, kind in page["links"]:
        origin, goal = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert link in origin["links"]
        assert link == goal["link"]
        assert kind == origin["type"] == goal["type"]
        drawn.add((str(source), output, str(target), goal["name"]))
    queued = {
        (*value, node_id, name)
        for node_id, node in api.items()
        for name, value in node["inputs"].items()
        if _is_link(value)
    }
    assert drawn == {(source, slot, target, name) for source, slot, target, name in queued}
    ends = [link for node in page["nodes"] for item in node["outputs"] for link in item["links"] or []]
    assert sorted(ends) == sorted(link[0] for link in page["links"])


def test_both_forms_hold_the_same_values(api: dict[str, Any], page: dict[str, Any]) -> None:
    for node in page["nodes"]:
        if node["type"] not in NODES:
            continue
        declared = NODES[node["type"]]
        values = iter(node["widgets_values"])
        for item in filter(lambda item: item.is_widget, declared.inputs.values()):
            value, queued = next(values), api[str(node["id"])]["inputs"][item.id]
            assert value == (item.fields["default"] if _is_link(queued) else queued), (node["type"], item.id)
            if item.fields.get("control_after_generate"):
                assert next(values) == "fixed", node["type"]
        assert not list(values), node["type"]


def test_page_workflow_draws_the_sockets_of_the_nodes(page: dict[str, Any]) -> None:
    for node in page["nodes"]:
        if node["type"] not in NODES:
            continue
        declared = NODES[node["type"]]
        # Newer hosts add their socket for interpolation models by themselves.
        always = [item for item in declared.inputs.values() if item.type != "FRAME INTERPOLATION MODEL"]
        sockets = [item.id for item in always if not item.is_widget]
        drawn = [item["name"] for item in node["inputs"]]
        assert drawn[: len(sockets)] == sockets, node["type"]
        assert all(item["widget"]["name"] == item["name"] for item in node["inputs"][len(sockets) :]), node["type"]
        assert [(item["name"], item["type"]) for item in node["outputs"]] == declared.outputs, node["type"]
        # The page offers to download a missing model only where its name is the widget's value.
        assert {model["name"] for model in node["properties"].get("models", [])} <= set(node["widgets_values"])


def test_page_workflow_routes_links_that_exist(page: dict[str, Any]) -> None:
    links, points = {link[0] for link in page["links"]}, {point["id"]: point for point in page["extra"]["reroutes"]}
    for extension in page["extra"]["linkExtensions"]:
        assert extension["id"] in links
        at: int | None = extension["parentId"]
        while at is not None:
            assert points[at]["linkIds"] == [extension["id"]]
            at = points.pop(at).get("parentId")
    assert not points
