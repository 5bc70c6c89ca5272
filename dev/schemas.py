"""The nodes' schemas, read from their source: for checks that need no ComfyUI."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from dev.environment import ROOT

SOCKETS_OF_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


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


def _returned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """What the functions of a file return, by their names, where that is the last thing they do."""
    for node in tree.body:
        last = node.body[-1] if isinstance(node, ast.FunctionDef) else None
        if isinstance(node, ast.FunctionDef) and isinstance(last, ast.Return) and last.value is not None:
            yield node.name, last.value


class Source:
    """What the files in nodes/ say. Anything in a schema that is not understood raises: nothing goes unnoticed."""

    def __init__(self) -> None:
        trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "nodes").glob("*.py"))]
        core = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "exvideo_core").glob("*.py"))]
        self.constants = {name: value for tree in (*core, *trees) for name, value in _constants(tree).items()}
        returned = {name: value for tree in trees for name, value in _returned(tree)}
        # Helpers that return a ready-made input, and those that return a list of them, or none.
        self.helpers = {name: value for name, value in returned.items() if isinstance(value, ast.Call)}
        choices = {name: value.body for name, value in returned.items() if isinstance(value, ast.IfExp)}
        self.lists = {name: value for name, value in choices.items() if isinstance(value, ast.List)}
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
        node_id, shown = (self._value(fields[name]) for name in ("node_id", "display_name"))
        return Node(node_id, shown, {item.id: item for item in inputs}, outputs)

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
