"""Which pictures a batch has, and what is done of them, kept in the output folder so that a stopped batch goes on."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..files import whole_or_nothing
from ..types import ExVideoError

MANIFEST = "batch.json"
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Item(NamedTuple):
    """A picture, what its files in the output folder are called, without their suffix, and what they are made from."""

    picture: Path
    name: str
    fingerprint: str = ""


def find_pictures(paths: Sequence[Path]) -> list[Item]:
    """Each picture once, in the order given; those of a folder by name, and named after the folder too.

    Raises:
        ExVideoError: a path that is not there, or no pictures.
    """
    found = {item.picture: item for path in paths for item in _within(Path(os.path.abspath(path)))}
    if not found:
        raise ExVideoError(f"There should be pictures ({', '.join(sorted(SUFFIXES))}) in the folders given, got none.")
    return list(found.values())


def _within(path: Path) -> Iterator[Item]:
    if path.is_dir():
        for picture in sorted(path.iterdir()):
            if picture.suffix.lower() in SUFFIXES and picture.is_file() and not picture.name.startswith("."):
                yield Item(picture, Path(path.name, picture.stem).as_posix())
    elif path.is_file():
        yield Item(path, path.stem)
    else:
        raise ExVideoError(f"{path} should be a picture or a folder of pictures, there is nothing of that name.")


class Manifest:
    """The record of a batch: of each picture its name, what it was made from, and its files or its error.

    Args:
        folder: the output folder; it is made where it is missing.
        settings: all that decides the outcome beside the picture.

    Raises:
        ExVideoError: the folder cannot be written to, or holds another file of the manifest's name.
    """

    def __init__(self, folder: Path, settings: Any):
        self.path = folder / MANIFEST
        self.made = self.failures = 0
        self._settings = json.dumps(settings, sort_keys=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._records: dict[str, dict[str, Any]] = {}
            if self.path.exists():
                self._records = dict(json.loads(self.path.read_text(encoding="utf-8"))["pictures"])
            self._write()
        except OSError as error:
            raise ExVideoError(
                f"Nothing can be kept in {folder} ({error}): make it writable, or choose another --output."
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise ExVideoError(
                f"{self.path} should be the record of a batch, it is something else: choose another --output."
            ) from error

    def to_do(self, items: Sequence[Item]) -> list[Item]:
        """Those that are not done with these settings, under the names that they keep from now on."""
        return [named for named in map(self._named, items) if not self._is_done(named)]

    def done(self, item: Item, files: Sequence[str]) -> None:
        """Keep that an item is made."""
        self._record(item, {"files": list(files)})
        self.made += 1

    def failed(self, item: Item, error: str) -> None:
        """Keep that an item could not be made; the next start tries it again."""
        self._record(item, {"error": error})
        self.failures += 1

    def _named(self, item: Item) -> Item:
        record = self._records.get(str(item.picture))
        if record is None:
            taken = {other["name"].casefold() for other in self._records.values()}
            numbered = (f"{item.name}_{number}" for number in itertools.count(2))
            name = next(name for name in itertools.chain([item.name], numbered) if name.casefold() not in taken)
            record = self._records[str(item.picture)] = {"name": name}
        return Item(item.picture, record["name"], self._fingerprint(item.picture))

    def _is_done(self, item: Item) -> bool:
        record = self._records[str(item.picture)]
        files = record.get("files", [])
        there = bool(files) and all((self.path.parent / file).is_file() for file in files)
        return there and record["from"] == item.fingerprint

    def _record(self, item: Item, outcome: dict[str, Any]) -> None:
        self._records[str(item.picture)] = {"name": item.name, "from": item.fingerprint, **outcome}
        self._write()

    def _fingerprint(self, picture: Path) -> str:
        try:
            content = picture.read_bytes()
        except OSError:
            return ""  # making it fails, and says so
        return hashlib.sha256(self._settings.encode() + content).hexdigest()

    def _write(self) -> None:
        with whole_or_nothing(self.path) as partial:
            partial.write_text(json.dumps({"pictures": self._records}, indent=1, ensure_ascii=False), encoding="utf-8")
