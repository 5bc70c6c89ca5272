"""Texts inside files, such as the graph that made them: in pictures, where ffmpeg writes none, and as the page reads
them."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image, TiffTags

_PNG_HEADER = 33
"""Bytes of a PNG's signature and first chunk, which tells its size."""
_WEBP_HEADER = 12
_HAS_EXIF = 8
"""The bit of a WebP's flags."""
_CAMERA = 0x10F
"""The EXIF tag of a camera's maker: the first of those that ComfyUI's page looks through for texts."""
_GRAPH = ("prompt", "workflow")
_JSON_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def without_braces_in_strings(json: str) -> str:
    """The same JSON with the braces inside its strings escaped: of WebM, ComfyUI's page finds the end of a text by
    counting braces."""
    return _JSON_STRING.sub(lambda string: string[0].replace("{", "\\u007b").replace("}", "\\u007d"), json)


def write_in_pngs(folder: Path, texts: Mapping[str, str], waiting: Callable[[], None]) -> None:
    """Put texts into every PNG of a folder, of which each may be dropped on ComfyUI's page.

    Args:
        folder: of PNGs, which are written over.
        texts: by their names; ASCII, other letters become question marks.
        waiting: called before each picture; may raise to stop.
    """
    chunks = b"".join(_png_chunk(name[:79], text) for name, text in texts.items())  # more, no name may have
    for path in sorted(folder.glob("*.png")):
        waiting()
        picture = path.read_bytes()
        path.write_bytes(picture[:_PNG_HEADER] + chunks + picture[_PNG_HEADER:])


def _png_chunk(name: str, text: str) -> bytes:
    content = b"tEXt" + f"{name}\0{text}".encode("latin-1", "replace")
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def _takes_text(tag: int) -> bool:
    """Whether a tag of EXIF is one of text, or of nothing known, and not of a number."""
    return TiffTags.lookup(tag).type in (None, TiffTags.ASCII)


def write_in_webp(path: Path, texts: Mapping[str, str], waiting: Callable[[], None]) -> None:
    """Put texts into a WebP's EXIF, as ComfyUI does: `name:text` in tags from a camera's maker downwards.

    Args:
        path: of the WebP, which is written over.
        texts: by their names; ASCII, other letters become question marks. Beyond some 250, what is not of the graph
            is left out.
        waiting: called once; may raise to stop.
    """
    waiting()
    exif = Image.Exif()
    graph_first = sorted(texts.items(), key=lambda item: item[0] not in _GRAPH)
    for tag, (name, text) in zip(filter(_takes_text, range(_CAMERA, 0, -1)), graph_first, strict=False):
        exif[tag] = f"{name}:{text}"
    chunk = exif.tobytes().removeprefix(b"Exif\0\0")
    with path.open("r+b") as file:
        header = file.read(_WEBP_HEADER + 9)
        if header[_WEBP_HEADER:-5] == b"VP8X":
            file.seek(-1, 1)
            file.write(bytes([header[-1] | _HAS_EXIF]))
        else:  # frames that are all the same become a plain picture, which has no flags
            with Image.open(path) as picture:
                sides = b"".join((side - 1).to_bytes(3, "little") for side in picture.size)
            file.seek(_WEBP_HEADER)
            kind, size = struct.unpack("<4sI", file.read(8))
            pixels = file.read()
            file.seek(_WEBP_HEADER)
            file.write(b"VP8X" + struct.pack("<II", 10, _HAS_EXIF) + sides)
            # The page does not know of the byte after a chunk of odd size, so it becomes the chunk's own.
            file.write(kind + struct.pack("<I", size + size % 2) + pixels)
        file.seek(0, 2)
        file.write(b"EXIF" + struct.pack("<I", len(chunk)) + chunk + b"\0" * (len(chunk) % 2))
        size = file.tell()
        file.seek(4)
        file.write(struct.pack("<I", size - 8))
