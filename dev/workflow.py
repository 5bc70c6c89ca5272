"""Values put into a workflow, in both of its forms: what the API takes, and what the page shows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from dev.errors import DevError

Graph = dict[str, Any]
Overrides = Mapping[str, Mapping[str, Any]]  # {class_type: {input: value}}

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# The page adds a second value to a seed: what becomes of it after a run.
SEED_NAMES = {"seed", "noise_seed"}
SEED_CONTROLS = {"fixed", "increment", "decrement", "randomize"}


class WorkflowError(DevError):
    """The workflow and what is asked of it do not fit."""


def options(info: Mapping[str, Any], name: str) -> list[str]:
    """The choices of a combo by `/object_info`, which writes it as `[[…], {…}]` or as `["COMBO", {"options": […]}]`."""
    spec = inputs_of(info).get(name)
    if spec is None:
        raise WorkflowError(f"{info.get('name')} should have an input {name}, it has none: update the pack.")
    choices = spec[0] if isinstance(spec[0], list) else spec[1].get("options", [])
    return [str(choice) for choice in choices]


def override_api(graph: Graph, overrides: Overrides) -> Graph:
    """A copy of the API form with the values of every node of the given classes replaced."""
    result = copy.deepcopy(graph)
    for class_type, values in overrides.items():
        nodes = [node for node in result.values() if node.get("class_type") == class_type]
        if not nodes:
            raise WorkflowError(f"The workflow should have a node {class_type}, it has none: restore its file.")
        for node in nodes:
            node["inputs"].update(values)
    return result


def override_ui(graph: Graph, overrides: Overrides, object_info: Mapping[str, Any]) -> Graph:
    """The same for the page's form, which lists widget values without their names, in the order of the schema."""
    result = copy.deepcopy(graph)
    for node in result.get("nodes", []):
        values = overrides.get(node.get("type", ""))
        widgets = node.get("widgets_values")
        if not values or not isinstance(widgets, list):
            continue
        for index, name in _widget_places(object_info.get(node["type"], {}), widgets):
            if name in values:
                widgets[index] = values[name]
    return result


def titles(graph: Graph, object_info: Mapping[str, Any]) -> dict[str, str]:
    """What to call each node of the API form in front of a person."""
    return {
        node_id: node.get("_meta", {}).get("title")
        or object_info.get(node["class_type"], {}).get("display_name")
        or node["class_type"]
        for node_id, node in graph.items()
    }


def _widget_places(info: Mapping[str, Any], widgets: list[Any]) -> Iterator[tuple[int, str]]:
    index = 0
    for name, spec in inputs_of(info).items():
        if not is_widget(spec):
            continue
        if index >= len(widgets):
            return  # the workflow is older than the input
        yield index, name
        index += 1
        controlled = settings_of(spec).get("control_after_generate") or name in SEED_NAMES
        if controlled and index < len(widgets) and widgets[index] in SEED_CONTROLS:
            index += 1


def inputs_of(info: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The inputs in the schema's order, required ones first."""
    inputs, order = info.get("input", {}), info.get("input_order", {})
    return {
        name: inputs[group][name]
        for group in ("required", "optional")
        if group in inputs
        for name in order.get(group, inputs[group])
    }


def is_widget(spec: list[Any]) -> bool:
    """Whether the page draws an input as a widget, by its entry in `/object_info`."""
    drawn = isinstance(spec[0], list) or spec[0] in WIDGET_TYPES
    return drawn and not settings_of(spec).get("forceInput")


def settings_of(spec: list[Any]) -> dict[str, Any]:
    """What else the entry says."""
    return dict(spec[1]) if len(spec) > 1 else {}
