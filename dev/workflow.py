"""The demo's values in both forms of a workflow: what the API takes, and what the page shows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from dev.errors import DevError
from exvideo_core.batch.workflow import Graph, Schemas, choices, inputs, is_widget, settings, with_values

Overrides = Mapping[str, Mapping[str, Any]]  # {class_type: {input: value}}

# The page adds a second value to a seed: what becomes of it after a run.
SEED_NAMES = {"seed", "noise_seed"}
SEED_CONTROLS = {"fixed", "increment", "decrement", "randomize"}


class WorkflowError(DevError):
    """The workflow and what is asked of it do not fit."""


def options(info: Mapping[str, Any], name: str) -> list[str]:
    """The choices of a combo by `/object_info`."""
    spec = inputs(info).get(name)
    if spec is None:
        raise WorkflowError(f"{info.get('name')} should have an input {name}, it has none: update the pack.")
    return choices(spec)


def override_api(graph: Graph, overrides: Overrides) -> Graph:
    """A copy of the API form with the values of every node of the given classes replaced."""
    for class_type, values in overrides.items():
        nodes = [node_id for node_id, node in graph.items() if node["class_type"] == class_type]
        if not nodes:
            raise WorkflowError(f"The workflow should have a node {class_type}, it has none: restore its file.")
        graph = with_values(graph, nodes, values)
    return graph


def override_ui(graph: Graph, overrides: Overrides, object_info: Schemas) -> Graph:
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


def _widget_places(info: Mapping[str, Any], widgets: list[Any]) -> Iterator[tuple[int, str]]:
    index = 0
    for name, spec in inputs(info).items():
        if not is_widget(spec):
            continue
        if index >= len(widgets):
            return  # the workflow is older than the input
        yield index, name
        index += 1
        controlled = settings(spec).get("control_after_generate", name in SEED_NAMES)
        if controlled and index < len(widgets) and widgets[index] in SEED_CONTROLS:
            index += 1
