"""The texts agree with the nodes: help pages, translations, workflows, README.

The nodes' schemas are read from their source, so that no ComfyUI is needed.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from exvideo_core.formats import FORMATS

ROOT = Path(__file__).parents[2]
HELP = ROOT / "web" / "docs"
CHINESE = ROOT / "locales" / "zh" / "nodeDefs.json"
API_WORKFLOW = ROOT / "workflows" / "api" / "image_to_video.json"
PAGE_WORKFLOW = ROOT / "workflows" / "image_to_video.json"
NOTES = {"Note", "MarkdownNote"}
SOCKETS_OF_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


# --- the nodes, by their source --------------------------------------------------------------------------------


class Input(NamedTuple):
    """One input of a schema: its socket type and what else its declaration says."""

    id: str
    type: str
    fields: dict[str, Any]

    @property
    def is_widget(self) -> bool:
        return self.type in SOCKETS_OF_WIDGETS

    @property
    def numbers(self) -> list[float]:
        """Least and greatest value, and the step where values are whole numbers and it is not 1."""
        if self.type not in ("INT", "FLOAT"):
            return []
        step = [self.fields["step"]] if self.type == "INT" and "step" in self.fields else []
        return [float(n) for n in (self.fields["min"], self.fields["max"], *step)]


class Node(NamedTuple):
    id: str
    display_name: str
    inputs: dict[str, Input]
    outputs: list[tuple[str, str]]
    """Shown name and type of each."""


def _constants(tree: ast.Module) -> dict[str, Any]:
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            found.update({target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)})
    return found


def _helpers(tree: ast.Module) -> dict[str, ast.Call]:
    """Functions that return a ready-made input, and the call they return."""
    return {
        node.name: node.body[-1].value
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and isinstance(node.body[-1], ast.Return)
        and isinstance(node.body[-1].value, ast.Call)
    }


def _lists(tree: ast.Module) -> dict[str, ast.List]:
    """Functions that return ready-made inputs or none, and the list of them."""
    returned = {n.name: n.body[-1].value for n in tree.body if isinstance(n, ast.FunctionDef) and _returns(n)}
    return {
        name: value.body
        for name, value in returned.items()
        if isinstance(value, ast.IfExp) and isinstance(value.body, ast.List)
    }


def _returns(function: ast.FunctionDef) -> bool:
    return isinstance(function.body[-1], ast.Return)


class _Source:
    """What the files in nodes/ say. Anything in a schema that is not understood raises: nothing goes unnoticed."""

    def __init__(self) -> None:
        trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "nodes").glob("*.py"))]
        core = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "exvideo_core").glob("*.py"))]
        self.constants = {name: value for tree in (*core, *trees) for name, value in _constants(tree).items()}
        self.helpers = {name: call for tree in trees for name, call in _helpers(tree).items()}
        self.lists = {name: value for tree in trees for name, value in _lists(tree).items()}
        self.nodes = [self._node(call) for tree in trees for call in self._schemas(tree)]

    @staticmethod
    def _schemas(tree: ast.Module) -> Iterator[ast.Call]:
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and any(keyword.arg == "node_id" for keyword in call.keywords):
                yield call

    def _node(self, call: ast.Call) -> Node:
        fields = {keyword.arg: keyword.value for keyword in call.keywords}
        assert isinstance(fields["inputs"], ast.List)
        assert isinstance(fields["outputs"], ast.List)
        inputs = [self._input(call) for item in fields["inputs"].elts for call in self._calls(item)]
        outputs = [self._output(item) for item in fields["outputs"].elts]
        names = (self._value(fields[name]) for name in ("node_id", "display_name"))
        return Node(*names, {item.id: item for item in inputs}, outputs)

    def _calls(self, item: ast.expr) -> list[ast.expr]:
        """An input; or those that a helper lists where the host can have them: `*helper()`."""
        if not isinstance(item, ast.Starred):
            return [item]
        assert isinstance(item.value, ast.Call)
        assert isinstance(item.value.func, ast.Name)
        return self.lists[item.value.func.id].elts

    def _input(self, call: ast.expr) -> Input:
        assert isinstance(call, ast.Call), ast.unparse(call)
        if isinstance(call.func, ast.Name) and call.func.id == "advanced":
            kind, arguments = call.args[0], call.args[1:]
        elif isinstance(call.func, ast.Name):
            return self._input(self.helpers[call.func.id])
        else:
            kind, arguments = self._socket(call.func, "Input"), call.args
        names = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg != "tooltip"}
        fields = {str(name): self._value(value) for name, value in names.items()}
        return Input(self._value(arguments[0]), _socket_type(kind), fields)

    def _output(self, call: ast.expr) -> tuple[str, str]:
        assert isinstance(call, ast.Call), ast.unparse(call)
        (shown,) = (keyword.value for keyword in call.keywords if keyword.arg == "display_name")
        return self._value(shown), _socket_type(self._socket(call.func, "Output"))

    @staticmethod
    def _socket(function: ast.expr, kind: str) -> ast.expr:
        assert isinstance(function, ast.Attribute), ast.unparse(function)
        assert function.attr == kind, ast.unparse(function)
        return function.value

    def _value(self, node: ast.expr) -> Any:
        """A constant, a named constant, or the source of whatever is computed."""
        if isinstance(node, ast.Name) and node.id in self.constants:
            return self.constants[node.id]
        try:
            return ast.literal_eval(node)
        except ValueError:
            return ast.unparse(node)


def _socket_type(kind: ast.expr) -> str:
    """`io.ClipVision` → CLIP_VISION; our own socket `ExVideo` → EXVIDEO; the host's for interpolation."""
    if isinstance(kind, ast.Call):
        return "FRAME INTERPOLATION MODEL"
    if isinstance(kind, ast.Name):
        return kind.id.upper()
    assert isinstance(kind, ast.Attribute), ast.unparse(kind)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.attr).upper()


NODES = {node.id: node for node in _Source().nodes}
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


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", "assets/README.md"])
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
