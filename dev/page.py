"""ComfyUI's page as a person uses it, in Chromium without a screen: drop a file, run, watch, read the help."""

from __future__ import annotations

import atexit
import base64
import json
import mimetypes
import os
import shutil
import time
import urllib.request
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Error, Playwright, sync_playwright

from dev.errors import DevError

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
FRONTEND = os.environ.get("FRONTEND", "")
"""The folder `static` of a comfyui_frontend_package, in the place of the page that the host comes with."""
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
"""Of somebody who has been here before: no tour, no map over the nodes."""
SIZE = {"width": 2200, "height": 900}

_READY = "() => window.app && window.app.vueAppReady && window.app.graph"
_FILE = """([data, name, type]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type}));
    return transfer;
}"""
_WATCH = """() => {
    window.seen = [];
    for (const kind of ["execution_start", "progress", "executed", "execution_success", "execution_error"])
        window.app.api.addEventListener(kind, event => window.seen.push([kind, event.detail]));
}"""
_FIT = """() => {
    const {canvas, graph} = window.app, boxes = [...graph._nodes, ...graph._groups];
    const least = i => Math.min(...boxes.map(box => box.pos[i])) - 40;
    const most = i => Math.max(...boxes.map(box => box.pos[i] + box.size[i]));
    const [wide, high] = [canvas.canvas.clientWidth - 80, canvas.canvas.clientHeight - 280];
    const scale = Math.min(wide / (most(0) - least(0)), high / (most(1) - least(1)), 1);
    canvas.ds.scale = scale;
    canvas.ds.offset = [-least(0) + 60 / scale, -least(1) + 180 / scale];
    canvas.setDirty(true, true);
}"""


@cache
def _playwright() -> Playwright:
    """One for all pages of the process, since a thread can have no second one."""
    started = sync_playwright().start()
    atexit.register(started.stop)
    return started


class PageError(DevError):
    """The page is not as it should be."""


class Page:
    """One page of one server. Use it in a `with` statement.

    Args:
        url: of the server.
        locale: language of the page.
        nodes_2: whether nodes are drawn in the page's newer way, which it calls Nodes 2.0.
    """

    def __init__(self, url: str, locale: str = "en", nodes_2: bool = False) -> None:
        if not CHROMIUM:
            raise PageError("Chromium is needed for the tests of the page: `apt-get install chromium`.")
        self._url = url
        self._settings = {**SETTINGS, "Comfy.Locale": locale, "Comfy.VueNodes.Enabled": nodes_2}
        self._browser: Browser | None = None

    def __enter__(self) -> Page:
        body = json.dumps(self._settings).encode()
        headers = {"Content-Type": "application/json"}
        local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        local.open(urllib.request.Request(f"{self._url}/settings", body, headers), timeout=30).close()
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        if self._browser is not None:
            self._browser.close()

    def _open(self) -> None:
        self._browser = _playwright().chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        self.tab = self._browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
        self.tab.set_default_timeout(60_000)
        self.reload()

    def revive(self) -> None:
        """Open the page in a new browser if this one has crashed."""
        try:
            self.tab.evaluate("() => 0")
        except Error:
            self.__exit__()
            self._open()

    def reload(self) -> None:
        """Open the page anew."""
        self.tab.goto(self._url)
        self.tab.wait_for_function(_READY)
        self.tab.evaluate(_WATCH)

    def drop(self, path: Path) -> None:
        """Drop a file on the canvas, and wait for its graph."""
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        given = [base64.b64encode(path.read_bytes()).decode(), path.name, kind]
        transfer = self.tab.evaluate_handle(_FILE, given)
        self.tab.evaluate("() => window.app.graph.clear()")
        self.tab.dispatch_event("#graph-canvas", "drop", {"dataTransfer": transfer})
        try:
            self.tab.wait_for_function("() => window.app.graph._nodes.length > 0")
        except Error as error:
            raise PageError(f"{path} was dropped, but no graph came of it.") from error
        self.tab.wait_for_timeout(700)  # dialogs come a moment later

    def dialogs(self) -> list[str]:
        """What the dialogs say that are open. Newer pages list issues in their place: then all that the page says."""
        details = self.tab.get_by_role("button", name="View details")
        if details.count():
            details.first.click()
            self.tab.wait_for_timeout(700)
            return [str(self.tab.evaluate("() => document.body.innerText"))]
        return list(self.tab.evaluate("() => [...document.querySelectorAll('[role=dialog]')].map(d => d.innerText)"))

    def graph(self) -> dict[str, Any]:
        """The graph as the page saves it."""
        return dict(self.tab.evaluate("() => window.app.graph.serialize()"))

    def prompt(self) -> dict[str, Any]:
        """The graph as the page queues it."""
        return dict(self.tab.evaluate("async () => (await window.app.graphToPrompt()).output"))

    def overlaps(self) -> list[tuple[str, str]]:
        """Nodes that lie over each other, as the page draws them."""
        found = self.tab.evaluate(
            """() => {
                const boxes = window.app.graph._nodes.map(node => [node.type, ...node.getBounding()]);
                const over = (a, b) => a[1] < b[1] + b[3] && b[1] < a[1] + a[3] && a[2] < b[2] + b[4]
                    && b[2] < a[2] + a[4];
                return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => over(a, b)).map(b => [a[0], b[0]]));
            }"""
        )
        return [tuple(pair) for pair in found]

    def names(self) -> dict[str, list[str]]:
        """Of each node by its type: what its title says, and the names of its inputs, as they are shown."""
        return dict(
            self.tab.evaluate(
                """() => Object.fromEntries(window.app.graph._nodes.map(node => [node.type, [node.title,
                    ...(node.inputs ?? []).map(input => input.label || input.localized_name || input.name)]]))"""
            )
        )

    def set(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Set widgets, by the type of their node."""
        self.tab.evaluate(
            """values => {
                for (const node of window.app.graph._nodes)
                    for (const widget of node.widgets ?? [])
                        if (widget.name in (values[node.type] ?? {})) widget.value = values[node.type][widget.name];
            }""",
            values,
        )

    def run(self, timeout: float = 300.0) -> list[tuple[str, dict[str, Any]]]:
        """Press Run and wait until the queue is done; returns what happened."""
        self.press_run()
        return self.until_seen("execution_success", "execution_error", timeout=timeout)

    def press_run(self) -> None:
        self.tab.evaluate("() => { window.seen.length = 0; }")
        self.tab.get_by_test_id("queue-button").or_(self.tab.locator(".execute-button")).first.click()

    def until_seen(self, *kinds: str, timeout: float = 300.0) -> list[tuple[str, dict[str, Any]]]:
        """Wait for an event of one of these kinds; returns what happened since Run was pressed."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            seen = self.tab.evaluate("() => window.seen")
            if any(kind in kinds for kind, _ in seen):
                return [(kind, dict(detail or {})) for kind, detail in seen]
            if errors := self.dialogs():
                raise PageError(f"Run was pressed, and a dialog opened: {errors[0][:500]}")
            self.tab.wait_for_timeout(50)
        raise PageError(f"Run was pressed, and after {timeout:.0f} s none of {', '.join(kinds)} was seen.")

    def playing(self, kind: str) -> bool:
        """Whether the node of a type shows a video that plays."""
        video = f"(window.app.graph._nodes.find(node => node.type === '{kind}').videoContainer?.querySelector('video'))"
        try:
            self.tab.wait_for_function(f"() => {video}?.videoWidth > 0", timeout=15_000)
            self.tab.evaluate(
                f"() => {{ const video = {video}; video.muted = true; video.currentTime = 0; video.play(); }}"
            )
            self.tab.wait_for_function(f"() => {video}.currentTime > 0.1", timeout=15_000)
        except Error:
            return False
        return True

    def shows_video(self) -> bool:
        """Whether a video is shown anywhere on the page."""
        shown = "() => [...document.querySelectorAll('video')].some(video => video.videoWidth > 0)"
        try:
            self.tab.wait_for_function(shown, timeout=15_000)
        except Error:
            return False
        return True

    def picture(self, kind: str) -> bool:
        """Whether the node of a type shows a picture."""
        node = f"window.app.graph._nodes.find(node => node.type === '{kind}')"
        try:
            self.tab.wait_for_function(f"() => {node}.imgs?.[0]?.naturalWidth > 0", timeout=15_000)
        except Error:
            return False
        return True

    def help(self, kind: str) -> str:
        """Open the help of a node of a type, by the button over it; returns what it says."""
        self.tab.evaluate(_FIT)
        self.tab.wait_for_timeout(700)
        self.tab.evaluate(
            "kind => window.app.canvas.selectNode(window.app.graph._nodes.find(node => node.type === kind))", kind
        )
        self.tab.get_by_test_id("info-button").click()
        text = self.tab.locator(".node-help-content")
        text.locator("table").first.wait_for()
        return text.inner_text()

    def help_pictures(self) -> list[bool]:
        """Of each picture in the help that is open, whether it is shown."""
        pictures = self.tab.locator(".node-help-content img")
        return list(
            pictures.evaluate_all(
                "all => Promise.all(all.map(img => img.decode().then(() => img.naturalWidth > 0, () => false)))"
            )
        )

    def face(self, kind: str, path: Path) -> None:
        """A picture of a node of a type, alone, as it comes from the menu."""
        clip = self.tab.evaluate(
            """kind => {
                const {canvas, graph} = window.app, node = window.LiteGraph.createNode(kind);
                graph.clear();
                graph.add(node);
                [canvas.ds.scale, canvas.ds.offset] = [1, [400, 200]];
                canvas.setDirty(true, true);
                const {x, y} = canvas.canvas.getBoundingClientRect(), title = window.LiteGraph.NODE_TITLE_HEIGHT;
                const [left, top, width, height] = [...node.pos, ...node.size];
                return {x: x + left + 396, y: y + top + 196 - title, width: width + 8, height: height + title + 8};
            }""",
            kind,
        )
        self.tab.wait_for_timeout(700)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.tab.screenshot(path=path, clip=clip)

    def shot(self, path: Path, whole: bool = True) -> None:
        """A picture of the page, with the whole graph in view."""
        if whole:
            self.tab.evaluate(_FIT)
        self.tab.wait_for_timeout(700)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.tab.screenshot(path=path)
