"""Pictures through a workflow, on ComfyUI servers that run already.

    python -m exvideo_core.batch pictures --output videos --set ExVideoSampler.seed=7

Run in this pack's folder. A batch that was stopped goes on when it is started again. The exit status is 0 when all is
done, 1 when some pictures failed or were not reached, 2 when nothing was begun, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..lock import locked
from ..types import ExVideoError
from .progress import say

if TYPE_CHECKING:
    from .manifest import Item
    from .work import Recipe
    from .workflow import Schemas

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "api" / "image_to_video.json"
SERVER = "http://127.0.0.1:8188"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m exvideo_core.batch", description="Send pictures through a workflow on running ComfyUI servers."
    )
    parser.add_argument("pictures", type=Path, nargs="+", help="pictures, or folders of pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--workflow", type=Path, default=WORKFLOW, help="in API form; image to video by default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NODE.INPUT=VALUE", dest="settings",
        help="a value for all nodes of that class, title or id; may be given many times",
    )  # fmt: skip
    parser.add_argument("--picture", default="LoadImage.image", metavar="NODE.INPUT", help="where each picture goes")
    parser.add_argument(
        "--server", action="append", metavar="URL", help=f"{SERVER} by default; may be given many times"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is not done; returns the exit status."""
    options = arguments().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter of a picture's name
    try:
        return _run(options)
    except ExVideoError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"\nStopped. What is done is in {options.output}; the same command goes on.\n")
        return 130


def _run(options: argparse.Namespace) -> int:
    try:
        importlib.import_module(".client", __package__)
    except ImportError as error:
        raise ExVideoError(
            "A batch needs requests and websocket-client: install both (pip install requests websocket-client)."
        ) from error
    from .manifest import find_pictures
    from .many import load_ray
    from .work import Recipe
    from .workflow import Place, find, read_workflow, titles, with_texts

    graph, pictures = read_workflow(options.workflow), find_pictures(options.pictures)
    urls = list(dict.fromkeys(map(_url, options.server or [SERVER])))
    if len(urls) > 1:
        load_ray()
    urls, schemas = _answering(urls)
    graph, place = with_texts(graph, options.settings, schemas), Place.parse(options.picture)
    recipe = Recipe(graph, find(graph, place, schemas), place.input, titles(graph, schemas), options.output)
    told = f"Another batch is writing to {options.output}: wait until it has ended, or choose another --output."
    with locked(options.output, told):
        return _make(urls, recipe, pictures, options.picture)


def _make(urls: Sequence[str], recipe: Recipe, pictures: Sequence[Item], place: str) -> int:
    """Make what is not done, and tell how it went; returns the exit status."""
    from .client import Client
    from .manifest import Manifest, RecordError
    from .many import run_many
    from .work import run_one

    manifest = Manifest(recipe.folder, [recipe.graph, place])
    own = manifest.own_files()
    pictures = [item for item in pictures if str(item.picture) not in own]
    items = manifest.to_do(pictures)
    say(f"{len(items)} of {len(pictures)} pictures are to be done.")
    stopped = False
    try:
        if len(urls) > 1:
            stopped = run_many(urls, recipe, items, manifest)
        elif items:
            with Client(urls[0]) as client:
                stopped = run_one(client, recipe, items, manifest)
    except RecordError as error:
        say(f"{error}")
        stopped = True
    left = len(items) - manifest.made
    say(f"{manifest.made} done, {manifest.failures} failed, {left - manifest.failures} not reached: {manifest.path}")
    return 0 if not left else 1 if manifest.made or manifest.failures or stopped else 2


def _url(text: str) -> str:
    url = text.strip()
    if not url:
        raise ExVideoError(f"--server is an address such as {SERVER}, got an empty text.")
    return url if "://" in url else f"http://{url}"


def _answering(urls: Sequence[str]) -> tuple[list[str], Schemas]:
    """The servers that answer, and what the first of them says of its nodes."""
    from .client import Client, ClientError

    schemas = {}
    for url in urls:
        with Client(url) as client:
            try:
                schemas[url] = client.object_info()
            except ClientError as error:
                say(f"{error}")
    if not schemas:
        raise ExVideoError("No ComfyUI answers: start one, or name another --server.")
    return list(schemas), next(iter(schemas.values()))


if __name__ == "__main__":
    sys.exit(main())
