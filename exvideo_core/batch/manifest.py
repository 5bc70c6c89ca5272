"""Which pictures a batch has, and what is done of them, kept in the output folder so that a stopped batch goes on."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..files import whole_or_nothing
from ..types import ExVideoError

MANIFEST = "batch.json"
ARRIVING = ".batch-"
"""How folders begin, in the output folder, of files that have no names yet."""
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


class RecordError(ExVideoError):
    """What is done cannot be kept, so nothing more should be begun."""


class Manifest:
    """The record of a batch: of each picture its name, what it was made from, and its files or its error.

    Files that were made for it before, with other settings, are its own as well.

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
                self._records = dict(json.loads(self.path.read_text(encoding="utf-8-sig"))["pictures"])
                for record in self._records.values():
                    if not all(isinstance(text, str) for text in (record["name"], *_files(record))):
                        raise TypeError
            self._names = {record["name"].casefold() for record in self._records.values()}
            self._write()
            for left in folder.glob(f"{ARRIVING}*"):  # by a batch that was killed
                shutil.rmtree(left, ignore_errors=True)
        except OSError as error:
            raise ExVideoError(
                f"Nothing can be kept in {folder} ({error}): make it writable, or choose another --output."
            ) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ExVideoError(
                f"{self.path} should be the record of a batch, it is something else: remove it, and all is made anew, "
                "or choose another --output."
            ) from error

    def to_do(self, items: Sequence[Item]) -> list[Item]:
        """Those that are not done with these settings, under the names that they keep from now on."""
        return [named for named in map(self._named, items) if not self._is_done(named)]

    def own_files(self) -> set[str]:
        """The paths of all that the batch has made, which may lie among the pictures."""
        made = itertools.chain(*map(_files, self._records.values()))
        return {os.path.abspath(self.path.parent / file) for file in made}

    def done(self, item: Item, arrived: Sequence[Path]) -> list[str]:
        """Keep that an item is made, and move its files to where they belong; returns their names.

        Raises:
            RecordError: it cannot be kept.
            OSError: a file cannot be moved.
        """
        files = self._free(item, [path.suffix for path in arrived])
        # Its own before they are there, or after a kill they would be somebody else's; done not before they are.
        self._record(item, {}, files)
        for path, file in zip(arrived, files, strict=True):
            (self.path.parent / file).parent.mkdir(parents=True, exist_ok=True)
            _move(path, self.path.parent / file)
        self._record(item, {"files": files})
        self.made += 1
        return files

    def failed(self, item: Item, error: str) -> None:
        """Keep that an item could not be made; the next start tries it again.

        Raises:
            RecordError: it cannot be kept.
        """
        self.failures += 1
        self._record(item, {"error": error})

    def _named(self, item: Item) -> Item:
        record = self._records.get(str(item.picture))
        if record is None:
            name = next(name for name in _numbered(item.name) if name.casefold() not in self._names)
            self._names.add(name.casefold())
            record = self._records[str(item.picture)] = {"name": name}
        return Item(item.picture, record["name"], self._fingerprint(item.picture))

    def _free(self, item: Item, suffixes: Sequence[str]) -> list[str]:
        """Names for files with these suffixes, none of which is another item's or there already, unless as its own."""
        own = _files(self._records[str(item.picture)])
        others = [record for picture, record in self._records.items() if picture != str(item.picture)]
        taken = {file.casefold() for record in others for file in _files(record)}

        def is_free(file: str) -> bool:
            return file in own or not (file.casefold() in taken or os.path.lexists(self.path.parent / file))

        every = (_named_after(name, suffixes) for name in _numbered(item.name))
        return next(files for files in every if all(map(is_free, files)))

    def _is_done(self, item: Item) -> bool:
        record = self._records[str(item.picture)]
        files = record.get("files", [])
        there = bool(files) and all((self.path.parent / file).is_file() for file in files)
        return there and record.get("from") == item.fingerprint

    def _record(self, item: Item, outcome: dict[str, Any], coming: Sequence[str] = ()) -> None:
        before = [file for file in _files(self._records[str(item.picture)]) if file not in outcome.get("files", coming)]
        earlier = [*(file for file in before if (self.path.parent / file).exists()), *coming]
        self._records[str(item.picture)] = {
            "name": item.name,
            "from": item.fingerprint,
            **outcome,
            **({"earlier": earlier} if earlier else {}),
        }
        try:
            self._write()
        except OSError as error:
            raise RecordError(
                f"{self.path} cannot be written ({error}): free some space, and give the same command again."
            ) from error

    def _fingerprint(self, picture: Path) -> str:
        try:
            content = picture.read_bytes()
        except OSError:
            return ""  # making it fails, and says so
        return hashlib.sha256(self._settings.encode() + content).hexdigest()

    def _write(self) -> None:
        with whole_or_nothing(self.path) as partial:
            text = json.dumps({"pictures": self._records}, indent=1, ensure_ascii=False)
            # What is no text in the name of a file becomes JSON's own escape.
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def _files(record: dict[str, Any]) -> list[str]:
    """All that is a record's own."""
    return [*record.get("files", []), *record.get("earlier", [])]


def _numbered(name: str) -> Iterator[str]:
    return itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))


def _named_after(name: str, suffixes: Sequence[str]) -> list[str]:
    """The first of each kind of files has the name itself, others are numbered."""
    count: Counter[str] = Counter()
    files = []
    for suffix in suffixes:
        count[suffix] += 1
        files.append(f"{name}{f'.{count[suffix]}' if count[suffix] > 1 else ''}{suffix}")
    return files


def _move(path: Path, to: Path) -> None:
    """Give a file its place, also where that is a folder on another disk, by a link or a mount."""
    try:
        path.replace(to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with whole_or_nothing(to) as partial:
            shutil.copyfile(path, partial)
        path.unlink()
