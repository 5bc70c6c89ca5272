"""Values put into a workflow in the form that ComfyUI's API takes: {id: {"class_type": …, "inputs": {…}}}."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..types import ExVideoError

Graph = dict[str, Any]
Schemas = Mapping[str, Mapping[str, Any]]
"""What `/object_info` says of every class of nodes."""

_NUMBERS = {"INT": int, "FLOAT": float}
_SWITCH = {"true": True, "false": False}
_LONG_SAMPLER, _RUN_NAME = "ExVideoLongSampler", "checkpoint_name"
WIDGET_TYPES = {*_NUMBERS, "STRING", "BOOLEAN", "COMBO"}


class Place(NamedTuple):
    """An input of the nodes that are called `node`: their id, title or class."""

    node: str
    input: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """Out of `node.input`.

        Raises:
            ExVideoError: it is written another way.
        """
        node, _, name = text.rpartition(".")
        if not node or not name:
            raise ExVideoError(f"An input is named as node.input, such as ExVideoSampler.seed; got {text!r}.")
        return cls(node, name)


def read_workflow(path: Path) -> Graph:
    """A workflow in API form.

    Raises:
        ExVideoError: the file cannot be read, or holds something else.
    """
    try:
        graph = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ExVideoError(f"{path} should be a workflow in API form, but it cannot be read ({error}).") from error
    if not graph or not isinstance(graph, dict) or not all(map(_is_node, graph.values())):
        raise ExVideoError(
            f"{path} should be a workflow in API form, it is something else: save it by File → Export (API)."
        )
    return graph


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "class_type" in value and isinstance(value.get("inputs"), dict)


def titles(graph: Graph, schemas: Schemas) -> dict[str, str]:
    """What to call each node in front of a person, by its id."""
    return {
        node_id: (node.get("_meta") or {}).get("title")
        or schemas.get(node["class_type"], {}).get("display_name")
        or node["class_type"]
        for node_id, node in graph.items()
    }


def with_texts(graph: Graph, texts: Iterable[str], schemas: Schemas) -> Graph:
    """A copy with values as a person gives them, `node.input=value`, each read as the kind that its input has.

    Raises:
        ExVideoError: there is no such node or input, or it cannot have that value; says what there is.
    """
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise ExVideoError(f"A setting is written as node.input=value; got {text!r}.")
        place = Place.parse(name)
        for node_id in find(graph, place, schemas):
            spec = inputs(schemas[graph[node_id]["class_type"]])[place.input]
            graph = with_values(graph, [node_id], {place.input: _read(value, spec, name)})
    return graph


def find(graph: Graph, place: Place, schemas: Schemas) -> list[str]:
    """The ids of the nodes that a place means.

    Raises:
        ExVideoError: there are none, or one of them has no such input to set; says what there is.
    """
    called = titles(graph, schemas)
    found = [key for key, node in graph.items() if place.node in (key, called[key], node["class_type"])]
    if not found:
        known = ", ".join(f"{node['class_type']} ({key}, {called[key]!r})" for key, node in graph.items())
        raise ExVideoError(f"The workflow has no node {place.node}; it has {known}.")
    for node_id in found:
        class_type = graph[node_id]["class_type"]
        if class_type not in schemas:
            raise ExVideoError(f"ComfyUI has no node {class_type}: install the pack that it belongs to.")
        widgets = [name for name, spec in inputs(schemas[class_type]).items() if is_widget(spec)]
        if place.input not in widgets:
            raise ExVideoError(f"{class_type} has no input {place.input} to set; it has {', '.join(widgets)}.")
    return found


def with_values(graph: Graph, node_ids: Iterable[str], values: Mapping[str, Any]) -> Graph:
    """A copy with the values of these nodes replaced."""
    result = copy.deepcopy(graph)
    for node_id in node_ids:
        result[node_id]["inputs"].update(values)
    return result


def with_own_runs(graph: Graph, mark: str) -> Graph:
    """A copy in which long runs that are kept have a mark in their names: another picture's would be refused there."""
    result = copy.deepcopy(graph)
    for node in result.values():
        name = node["inputs"].get(_RUN_NAME)
        if node["class_type"] == _LONG_SAMPLER and isinstance(name, str) and name.strip():
            node["inputs"][_RUN_NAME] = f"{name.strip()} {mark}"
    return result


def inputs(schema: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What a class of nodes takes, in its own order, required ones first."""
    groups, order = schema.get("input", {}), schema.get("input_order", {})
    return {
        name: groups[group][name]
        for group in ("required", "optional")
        if group in groups
        for name in order.get(group, groups[group])
    }


def is_widget(spec: list[Any]) -> bool:
    """Whether an input is given as a value; others are only connected."""
    drawn = isinstance(spec[0], list) or spec[0] in WIDGET_TYPES
    return drawn and not settings(spec).get("forceInput")


def choices(spec: list[Any]) -> list[str]:
    """Those of a combo, as texts; none of what is none."""
    return [str(choice) for choice in _offered(spec)]


def _offered(spec: list[Any]) -> list[Any]:
    """A combo is written as `[[…], {…}]` or as `["COMBO", {"options": […]}]`."""
    return list(spec[0] if isinstance(spec[0], list) else settings(spec).get("options", []))


def settings(spec: list[Any]) -> dict[str, Any]:
    return dict(spec[1]) if len(spec) > 1 else {}


def _read(text: str, spec: list[Any], name: str) -> Any:
    offered = {str(choice): choice for choice in _offered(spec)}
    try:
        if spec[0] == "BOOLEAN":
            return _SWITCH[text.lower()]
        value = text if isinstance(spec[0], list) else _NUMBERS.get(spec[0], str)(text)
        if isinstance(value, float) and not math.isfinite(value):  # which no server can be told
            raise ValueError
    except (KeyError, ValueError):
        kind = {"INT": "a whole number", "FLOAT": "a number", "BOOLEAN": "true or false"}[spec[0]]
        raise ExVideoError(f"{name} should be {kind}, got {text!r}.") from None
    if offered and value not in offered:
        raise ExVideoError(f"{name} should be one of {', '.join(offered)}; got {text!r}.")
    # As it is offered: a number may be among the choices.
    return offered.get(value, value)
