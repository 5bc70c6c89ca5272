"""The texts agree with the nodes: help pages, translations, README.

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


def tables(page: Path) -> list[list[list[str]]]:
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
    rows = {_code(row[0]): row for row in tables(page)[0]} if node.inputs else {}
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
    # A page's tables: inputs and outputs unless there are none, formats of a node that has them, errors.
    found = tables(page)
    rows = found[bool(node.inputs)] if node.outputs else []
    assert [(_code(row[0]), row[1]) for row in rows] == node.outputs
    assert len(found) == 1 + bool(node.inputs) + bool(node.outputs) + (node.id == "ExVideoSave")


@pytest.mark.parametrize(("node", "page"), PAGES)
def test_help_shows_the_node(node: Node, page: Path) -> None:
    # The page looks for pictures from web/docs on, wherever the help that shows them lies.
    (picture,) = re.findall(r"!\[.+?\]\((.+?)\)", page.read_text(encoding="utf-8"))
    assert picture == f"{node.id}/node.png"
    assert (HELP / picture).read_bytes().startswith(b"\x89PNG")


def test_help_lists_the_formats() -> None:
    for name in ("ExVideoSave.md", "ExVideoSave/zh.md"):
        assert [_code(row[0]) for row in tables(HELP / name)[1]] == list(FORMATS)


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
        told = [*texts["inputs"].values(), *texts.get("outputs", {}).values()]
        assert all(text["tooltip"] for text in told), node_id
        assert all(text["name"] for text in texts["inputs"].values()), node_id


def test_chinese_help_names_inputs_as_the_node_does() -> None:
    chinese = json.loads(CHINESE.read_text(encoding="utf-8"))
    for node_id, texts in chinese.items():
        for row in tables(HELP / node_id / "zh.md")[0] if texts["inputs"] else []:
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


# --- README ----------------------------------------------------------------------------------------------------


def links(document: str) -> set[str]:
    return set(re.findall(r"\]\(([^)\s]+)\)", (ROOT / document).read_text(encoding="utf-8")))


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", "assets/README.md", "docs/batch.md"])
def test_links_lead_to_files_that_exist(document: str) -> None:
    files = {link.split("#")[0] for link in links(document) if "://" not in link} - {""}
    assert not [file for file in files if not (ROOT / document).parent.joinpath(file).exists()]


def test_links_within_the_readme_lead_to_headings() -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {"#" + re.sub("[',]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert {link for link in links("README.md") if link.startswith("#")} <= anchors


def test_readme_links_the_help_of_every_node() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for node in NODES.values():
        assert f"[{node.display_name}](web/docs/{node.id}.md)" in text
