"""How far the server is, for a person at a terminal or a log file."""

from __future__ import annotations

import sys
from typing import Any

QUARTERS = 4


def say(line: str) -> None:
    """A line for the person, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Progress:
    """Shows the running node: on a terminal as one line that changes, elsewhere as a line per node and quarter."""

    def __init__(self, titles: dict[str, str], before: str = "") -> None:
        """`titles` of the nodes by their id; `before` begins every line."""
        self._titles = titles
        self._before = before
        self._live = sys.stdout.isatty()
        self._node: str | None = None
        self._quarter = 0
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live and self._width:
            say("")  # what follows starts on a line of its own

    def on_event(self, kind: str, data: dict[str, Any]) -> None:
        """Take one event of the websocket."""
        if kind == "executing" and data.get("node"):
            self._enter(str(data["node"]))
        elif kind == "progress" and data.get("node"):
            self._advance(str(data["node"]), data.get("value", 0), data.get("max", 0))
        elif kind == "progress_state":
            for node, state in data.get("nodes", {}).items():
                if state.get("state") == "running":
                    self._advance(str(node), state.get("value", 0), state.get("max", 0))

    def _enter(self, node: str) -> None:
        if node != self._node:
            self._node = node
            self._quarter = 0
            self._show(self._title(node))

    def _advance(self, node: str, value: float, total: float) -> None:
        self._enter(node)
        if total <= 1:
            return  # the host gives every node one step; that says nothing
        quarter = int(QUARTERS * value / total)
        if self._live or quarter > self._quarter:
            self._quarter = quarter
            self._show(f"{self._title(node)}: {value:.0f}/{total:.0f} ({100 * value / total:.0f} %)")

    def _title(self, node: str) -> str:
        return self._titles.get(node, f"node {node}")

    def _show(self, text: str) -> None:
        text = self._before + text
        if not self._live:
            say(text)
            return
        sys.stdout.write("\r" + text.ljust(self._width))
        sys.stdout.flush()
        self._width = len(text)
