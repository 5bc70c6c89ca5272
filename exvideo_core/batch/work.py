"""One picture after another through one server."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..types import ExVideoError
from .client import Client, ClientError, FileGoneError, OnEvent, Output, PromptRefusedError, ServerGoneError, outputs
from .manifest import ARRIVING, Item, Manifest
from .progress import Progress, say
from .workflow import Graph, with_own_runs, with_values


class Recipe(NamedTuple):
    """What all items have in common: the graph, where the picture goes, what nodes are called, where files go."""

    graph: Graph
    picture_nodes: list[str]
    picture_input: str
    titles: dict[str, str]
    folder: Path


class Outcome(NamedTuple):
    """The files of an item, still without their names, or why there are none.

    `server_lost` tells whether its server can make nothing more, `begun` whether it had taken this item by then.
    """

    arrived: list[Path]
    error: str = ""
    server_lost: bool = False
    begun: bool = True


class Maker:
    """Makes items on one server."""

    def __init__(self, client: Client, recipe: Recipe):
        self._client, self._recipe = client, recipe
        self._prompt_id, self._begun = "", False

    def make(self, item: Item, on_event: OnEvent) -> Outcome:
        """Upload, queue, follow and fetch an item."""
        try:
            return Outcome(self._make(item, on_event))
        except (PromptRefusedError, ServerGoneError) as error:
            return Outcome([], str(error), server_lost=True, begun=self._begun)
        except (ExVideoError, OSError) as error:
            return Outcome([], str(error))

    def stop(self) -> None:
        """Make the server drop what it has of us, if it still answers."""
        if self._prompt_id:
            with suppress(ClientError):
                self._client.interrupt(self._prompt_id)

    def _make(self, item: Item, on_event: OnEvent) -> list[Path]:
        client, recipe = self._client, self._recipe
        self._begun = False
        picture = {recipe.picture_input: client.upload_image(item.picture)}
        graph = with_values(recipe.graph, recipe.picture_nodes, picture)
        graph = with_own_runs(graph, item.fingerprint[:16])
        try:
            return self._made(graph, on_event)
        except FileGoneError:
            # The server has made the same before, and does not look whether its file is still there.
            client.forget()
            return self._made(graph, on_event)

    def _made(self, graph: Graph, on_event: OnEvent) -> list[Path]:
        client, recipe = self._client, self._recipe
        # Known before the server knows it: Ctrl-C may come while its answer is on the way.
        self._prompt_id = str(uuid.uuid4())
        client.queue(graph, prompt_id=self._prompt_id)
        self._begun = True
        client.follow(self._prompt_id, on_event)
        # Of the others, previews, the server keeps nothing.
        saved = [output for output in outputs(client.history(self._prompt_id)) if output.type == "output"]
        if not saved:
            raise ExVideoError("The workflow should save a file, it saved none: add a node such as Save ExVideo.")
        prompt_id, self._prompt_id = self._prompt_id, ""
        return self._fetch(saved, recipe.folder / f"{ARRIVING}{prompt_id}")

    def _fetch(self, saved: Sequence[Output], folder: Path) -> list[Path]:
        """All files of an item, or none, in a folder of their own: only who knows all items can name them."""
        arrived = [folder / f"{number}{PurePosixPath(one.filename).suffix}" for number, one in enumerate(saved)]
        try:
            for output, path in zip(saved, arrived, strict=True):
                self._client.download(output, path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return arrived


def keep(manifest: Manifest, item: Item, outcome: Outcome, before: str) -> None:
    """Record and tell how an item ended.

    Raises:
        RecordError: it cannot be recorded.
    """
    told = outcome.error
    try:
        if told:
            manifest.failed(item, told)
        else:
            told = ", ".join(manifest.done(item, outcome.arrived))
    except OSError as error:
        told = f"Its files cannot be named ({error}): make their folder writable, or choose another --output."
        manifest.failed(item, told)
    finally:
        for folder in {path.parent for path in outcome.arrived}:
            shutil.rmtree(folder, ignore_errors=True)
    say(f"{before}{told}")


def run_one(client: Client, recipe: Recipe, items: Sequence[Item], manifest: Manifest) -> bool:
    """Make all items on one server, as long as it lives; returns whether it was lost with an item begun."""
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
            return outcome.begun
        keep(manifest, item, outcome, before)
    return False
