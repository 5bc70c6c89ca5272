"""Several servers, by Ray: a worker, one of its actors, owns each. They run on this machine, the servers anywhere.

Ray starts a lost worker again, and with it its item. An item whose server is lost goes to the next one that is free.
"""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..types import ExVideoError
from .client import Client, split_login
from .manifest import Item, Manifest, RecordError
from .progress import Progress, say
from .work import Maker, Outcome, Recipe, keep

RESTARTS = 3
LOOK_EVERY = 1.0


class _Latest(Progress):
    """Progress that is asked for instead of shown."""

    text = ""

    def _show(self, text: str) -> None:
        self.text = text


class _Worker:
    """Makes items on its server, and meanwhile tells how far it is."""

    def __init__(self, url: str, recipe: Recipe):
        self._maker, self._titles = Maker(Client(url), recipe), recipe.titles
        self._progress = _Latest(self._titles)

    def make(self, item: Item) -> Outcome:
        self._progress = _Latest(self._titles)
        return self._maker.make(item, self._progress.on_event)

    def now(self) -> str:
        return self._progress.text

    def stop(self) -> None:
        self._maker.stop()


def load_ray() -> Any:
    """Ray's module.

    Raises:
        ExVideoError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ExVideoError("Several servers need Ray: install it (pip install ray), or name one --server.") from error


def run_many(urls: Sequence[str], recipe: Recipe, items: Sequence[Item], manifest: Manifest) -> bool:
    """Make all items, as long as a server lives; returns whether one was lost with an item begun."""
    ray = load_ray()
    ray.init(address="local", num_cpus=len(urls), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        # Two calls at a time: to make an item, and to tell how far it is.
        kind = ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS, max_concurrency=2)(_Worker)
        return _spread(ray, {split_login(url)[0]: kind.remote(url, recipe) for url in urls}, items, manifest)
    finally:
        ray.shutdown()


def _spread(ray: Any, workers: dict[str, Any], items: Sequence[Item], manifest: Manifest) -> bool:
    lost = False
    waiting = deque(enumerate(items, 1))
    running: dict[Any, tuple[str, tuple[int, Item]]] = {}
    free, shown = deque(workers), dict.fromkeys(workers, "")
    try:
        while running or (free and waiting):
            while free and waiting:
                url, numbered = free.popleft(), waiting.popleft()
                running[workers[url].make.remote(numbered[1])] = (url, numbered)
            ended, _ = ray.wait(list(running), timeout=LOOK_EVERY)
            for url, (number, item) in running.values():
                text = _now(ray, workers[url])
                if text not in ("", shown[url]):
                    say(f"[{number} of {len(items)}] {item.picture.name} on {url}: {text}")
                    shown[url] = text
            for task in ended:
                url, (number, item) = running.pop(task)
                outcome = _outcome(ray, task)
                before = f"[{number} of {len(items)}] {item.picture.name} on {url}: "
                if outcome.server_lost:
                    say(f"{before}{outcome.error}")
                    lost |= outcome.begun
                    waiting.appendleft((number, item))
                else:
                    keep(manifest, item, outcome, before)
                    free.append(url)
    except (KeyboardInterrupt, RecordError):
        if running:
            ray.wait([workers[url].stop.remote() for url, _ in running.values()], num_returns=len(running), timeout=10)
        raise
    return lost


def _now(ray: Any, worker: Any) -> str:
    try:
        return str(ray.get(worker.now.remote(), timeout=LOOK_EVERY))
    except ray.exceptions.RayError:  # it is being started again, or busy
        return ""


def _outcome(ray: Any, task: Any) -> Outcome:
    try:
        return ray.get(task)
    except ray.exceptions.RayActorError as error:  # started again too often
        return Outcome([], f"The worker was lost ({error}).", server_lost=True)
