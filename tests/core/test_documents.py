"""The texts agree with the nodes: help pages, translations, workflows, README.

The nodes' schemas are read from their source, so that no ComfyUI is needed.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.schemas import Node, Source
from exvideo_core.formats import FORMATS

ROOT = Path(__file__).parents[2]
HELP = ROOT / "web" / "docs"
CHINESE = ROOT / "locales" / "zh" / "nodeDefs.json"
API_WORKFLOW = ROOT / "workflows" / "api" / "image_to_video.json"
PAGE_WORKFLOW = ROOT / "workflows" / "image_to_video.json"
NOTES = {"Note", "MarkdownNote"}


NODES = {node.id: node for node in Source().nodes}
PAGES = [
    pytest.param(node, HELP / name, id=name)
    for node in NODES.values()
    for name in (f"{node.id}.md", f"{node.id}/zh.md")
]


def test_the_source_is_understood() -> None:
    classes = [
        item.name
        for path in (ROOT / "nodes").glob("*.py")
        for item in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(item, ast.ClassDef) and any(ast.unparse(base) == "io.ComfyNode" for base in item.bases)
    ]
    assert sorted(NODES) == sorted(classes)
    assert NODES["ExVideoConditioning"].inputs["num_frames"].numbers == [1, 16384]
    assert NODES["ExVideoSampler"].inputs["seed"].fields["control_after_generate"] is True
    assert NODES["ExVideoConditioning"].outputs[3] == ("fps", "FLOAT")


# --- help ------------------------------------------------------------------------------------------------------


def _tables(page: Path) -> list[list[list[str]]]:
    """The cells of the tables of a page, without their headings."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^\|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in block.splitlines()] for block in blocks]


def _code(cell: str) -> str:
    found = re.match(r"`([^`]+)`", cell)
    assert found, f"should begin with a name in backticks: {cell}"
    return found[1]


@pytest.mark.parametrize(("node", "page"), PAGES)
def test_help_lists_the_inputs_of_the_node(node: Node, page: Path) -> None:
    rows = {_code(row[0]): row for row in _tables(page)[0]}
    assert list(rows) == list(node.inputs)
    for name, (_, kind, values, start, purpose) in rows.items():
        declared = node.inputs[name]
        assert kind == declared.type, name
        assert purpose, name
        numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", values)]
        assert numbers[: len(declared.numbers)] == declared.numbers, f"{name}: {values}"
        if declared.type in ("INT", "FLOAT"):
            assert float(start) == declared.fields["default"], name
        elif "default" in declared.fields:
            assert start.strip("`").lower() == str(declared.fields["default"]).lower(), name
        assert declared.fields.get("optional", False) == values.startswith(("optional", "可选")), name


@pytest.mark.parametrize(("node", "page"), PAGES)
def test_help_lists_the_outputs_of_the_node(node: Node, page: Path) -> None:
    # A page's tables: inputs, outputs unless there are none, formats of a node that has them, errors.
    tables = _tables(page)
    rows = tables[1] if node.outputs else []
    assert [(_code(row[0]), row[1]) for row in rows] == node.outputs
    assert len(tables) == 2 + bool(node.outputs) + (node.id == "ExVideoSave")


def test_help_lists_the_formats() -> None:
    for name in ("ExVideoSave.md", "ExVideoSave/zh.md"):
        assert [_code(row[0]) for row in _tables(HELP / name)[1]] == list(FORMATS)


def test_help_has_no_pages_of_other_nodes() -> None:
    expected = {HELP / name for node in NODES for name in (f"{node}.md", f"{node}/zh.md")}
    assert set(HELP.rglob("*.md")) == expected


def test_headings_are_the_names_that_nodes_are_shown_by() -> None:
    chinese = json.loads(CHINESE.read_text(encoding="utf-8"))
    for node in NODES.values():
        headings = {f"{node.id}.md": node.display_name, f"{node.id}/zh.md": chinese[node.id]["display_name"]}
        for name, shown in headings.items():
            assert (HELP / name).read_text(encoding="utf-8").startswith(f"# {shown}\n"), name


# --- translations ----------------------------------------------------------------------------------------------


def test_chinese_covers_every_node_input_and_output() -> None:
    chinese = json.loads(CHINESE.read_text(encoding="utf-8"))
    assert list(chinese) == [node for node in chinese if node in NODES]
    assert set(chinese) == set(NODES)
    for node_id, texts in chinese.items():
        node = NODES[node_id]
        assert texts["display_name"]
        assert texts["description"]
        assert list(texts["inputs"]) == list(node.inputs), node_id
        assert list(texts.get("outputs", {})) == [str(index) for index in range(len(node.outputs))], node_id
        assert all(text["name"] for text in texts["inputs"].values()), node_id


def test_chinese_help_names_inputs_as_the_node_does() -> None:
    chinese = json.loads(CHINESE.read_text(encoding="utf-8"))
    for node_id, texts in chinese.items():
        for row in _tables(HELP / node_id / "zh.md")[0]:
            name = _code(row[0])
            assert row[0] == f"`{name}`（{texts['inputs'][name]['name']}）", node_id


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    else:
        yield value


def test_translations_hold_none_of_the_signs_that_the_page_would_interpret() -> None:
    # The page's library for translations takes these for links, placeholders and plurals.
    assert not [text for text in _texts(json.loads(CHINESE.read_text(encoding="utf-8"))) if re.search(r"[@{}|]", text)]


# --- workflows -------------------------------------------------------------------------------------------------


@pytest.fixture(name="api")
def _api() -> dict[str, Any]:
    return json.loads(API_WORKFLOW.read_text(encoding="utf-8"))


@pytest.fixture(name="page")
def _page() -> dict[str, Any]:
    return json.loads(PAGE_WORKFLOW.read_text(encoding="utf-8"))


def _is_link(value: Any) -> bool:
    return isinstance(value, list)


def _outputs(class_type: str) -> list[tuple[str, str]]:
    return [("IMAGE", "IMAGE"), ("MASK", "MASK")] if class_type == "LoadImage" else NODES[class_type].outputs


def test_api_workflow_sets_every_input_to_its_default(api: dict[str, Any]) -> None:
    for node in api.values():
        assert node["_meta"]["title"]
        if node["class_type"] not in NODES:
            continue
        declared = NODES[node["class_type"]].inputs
        needed = {name for name, item in declared.items() if not item.fields.get("optional")}
        assert needed <= set(node["inputs"]) <= set(declared), node["class_type"]
        for name, value in node["inputs"].items():
            if not _is_link(value) and "default" in declared[name].fields:
                assert value == declared[name].fields["default"], (node["class_type"], name)


def test_api_links_lead_to_outputs_of_the_right_type(api: dict[str, Any]) -> None:
    for node in api.values():
        for name, value in node["inputs"].items():
            if not _is_link(value):
                continue
            source, slot = value
            outputs = _outputs(api[source]["class_type"])
            assert outputs[slot][1] == NODES[node["class_type"]].inputs[name].type, (node["class_type"], name)


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
        sockets = [item.id for item in declared.inputs.values() if not item.is_widget]
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


# --- README ----------------------------------------------------------------------------------------------------


def _links(document: str) -> set[str]:
    return set(re.findall(r"\]\(([^)\s]+)\)", (ROOT / document).read_text(encoding="utf-8")))


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", "assets/README.md", "docs/batch.md"])
def test_links_lead_to_files_that_exist(document: str) -> None:
    files = {link.split("#")[0] for link in _links(document) if "://" not in link} - {""}
    assert not [file for file in files if not (ROOT / document).parent.joinpath(file).exists()]


def test_links_within_the_readme_lead_to_headings() -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {f"#{heading.lower().replace(' ', '-')}" for heading in headings}
    assert {link for link in _links("README.md") if link.startswith("#")} <= anchors


def test_readme_links_the_help_of_every_node() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for node in NODES.values():
        assert f"[{node.display_name}](web/docs/{node.id}.md)" in text
