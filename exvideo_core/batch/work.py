"""One picture after another through one server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..types import ExVideoError
from .client import Client, OnEvent, Output, PromptRefusedError, ServerGoneError, outputs
from .manifest import Item, Manifest
from .progress import Progress, say
from .workflow import Graph, with_values


class Recipe(NamedTuple):
    """What all items have in common: the graph, where the picture goes, what nodes are called, where files go."""

    graph: Graph
    picture_nodes: list[str]
    picture_input: str
    titles: dict[str, str]
    folder: Path


class Outcome(NamedTuple):
    """The files of an item, or why there are none; and whether its server can make nothing more."""

    files: list[str]
    error: str = ""
    server_lost: bool = False


class Maker:
    """Makes items on one server."""

    def __init__(self, client: Client, recipe: Recipe):
        self._client, self._recipe = client, recipe
        self._prompt_id = ""

    def make(self, item: Item, on_event: OnEvent) -> Outcome:
        """Upload, queue, follow and fetch an item."""
        try:
            return Outcome(self._make(item, on_event))
        except (PromptRefusedError, ServerGoneError) as error:
            return Outcome([], str(error), server_lost=True)
        except (ExVideoError, OSError) as error:
            return Outcome([], str(error))

    def stop(self) -> None:
        """Make the server drop what it has of us."""
        if self._prompt_id:
            self._client.interrupt(self._prompt_id)

    def _make(self, item: Item, on_event: OnEvent) -> list[str]:
        client, recipe = self._client, self._recipe
        picture = {recipe.picture_input: client.upload_image(item.picture)}
        self._prompt_id = client.queue(with_values(recipe.graph, recipe.picture_nodes, picture))
        client.follow(self._prompt_id, on_event)
        # Of the others, previews, the server keeps nothing.
        saved = [output for output in outputs(client.history(self._prompt_id)) if output.type == "output"]
        if not saved:
            raise ExVideoError("The workflow should save a file, it saved none: add a node such as Save ExVideo.")
        self._prompt_id = ""
        files = list(_names(item.name, saved))
        for output, file in zip(saved, files, strict=True):
            client.download(output, recipe.folder / file)
        return files


def _names(name: str, saved: Sequence[Output]) -> Iterator[str]:
    """The first of each kind of files is named after the picture, others are numbered."""
    count: Counter[str] = Counter()
    for output in saved:
        suffix = PurePosixPath(output.filename).suffix
        count[suffix] += 1
        yield f"{name}{f'.{count[suffix]}' if count[suffix] > 1 else ''}{suffix}"


def keep(manifest: Manifest, item: Item, outcome: Outcome, before: str) -> None:
    """Record and tell how an item ended."""
    if outcome.error:
        manifest.failed(item, outcome.error)
    else:
        manifest.done(item, outcome.files)
    say(f"{before}{outcome.error or ', '.join(outcome.files)}")


def run_one(client: Client, recipe: Recipe, items: Sequence[Item], manifest: Manifest) -> None:
    """Make all items on one server, as long as it lives."""
    maker = Maker(client, recipe)
    for number, item in enumerate(items, 1):
        before = f"[{number} of {len(items)}] {item.picture.name}: "
        try:
            with Progress(recipe.titles, before) as progress:
                outcome = maker.make(item, progress.on_event)
        except KeyboardInterrupt:
            maker.stop()
            raise
        if outcome.server_lost:
            say(f"{before}{outcome.error}")
            return
        keep(manifest, item, outcome, before)
