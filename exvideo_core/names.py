"""What a person may call a file: patterns that are filled in, and names that no system or page could take."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

from .types import ExVideoError

_RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *(p + n for p in ("COM", "LPT") for n in "123456789¹²³")}
"""What Windows takes for devices, with any ending."""
_DATE, _PARTS_OF_DATE = re.compile("%date(?::([^%]+))?%"), re.compile("yyyy|yy|MM?|dd?|hh?|mm?|ss?")
_INPUT = re.compile(r"%([^%.:]+)\.([^%]+)%")
_NOT_IN_DATES = re.compile(r'[*:?"<>|]')
_NOT_IN_NAMES = re.compile(r'[/\\?%*:|"<>\x00-\x1f\x7f-\x9f]|\.{2,}')


def file_prefix(prefix: str, prompt: Mapping[str, Any] | None = None) -> str:
    """The subfolder and beginning of a file's name, with its patterns filled in.

    ComfyUI's page fills these in, but for its own nodes alone, and the server knows only %year%, %width% and the like.

    Args:
        prefix: may hold the time, as in %date% or %date:yyyy-MM-dd hh.mm%, and the value of a node's input, as in
            %ExVideoSampler.seed%, by the node's kind or title.
        prompt: the graph, in the form of the API; what is not in it stays as it is written.

    Raises:
        ExVideoError: a name that is not one on every system, a full path, or one that the page cannot fetch.
    """
    return _checked(_with_inputs(_dated(prefix), prompt or {}))


def _dated(prefix: str) -> str:
    now = time.localtime()
    numbers = {"M": now.tm_mon, "d": now.tm_mday, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def written(part: re.Match[str]) -> str:
        sign, width = part[0][0], len(part[0])
        return f"{now.tm_year}"[-width:] if sign == "y" else f"{numbers[sign]:0{width}}"

    def dated(date: re.Match[str]) -> str:
        # A time is written with colons, which Windows has in no name. Slashes part folders.
        return _NOT_IN_DATES.sub("_", _PARTS_OF_DATE.sub(written, date[1] or "yyyy-MM-dd"))

    return _DATE.sub(dated, prefix)


def _with_inputs(prefix: str, prompt: Mapping[str, Any]) -> str:
    def value(node: str, name: str) -> str | None:
        for entry in prompt.values():
            if node in (entry.get("class_type"), (entry.get("_meta") or {}).get("title")):
                found = entry.get("inputs", {}).get(name)
                if isinstance(found, (str, int, float)):
                    return _NOT_IN_NAMES.sub("_", str(found))
        return None

    filled, done = "", 0
    while pattern := _INPUT.search(prefix, done):
        found, begin, end = value(*pattern.groups()), *pattern.span()
        if found is None:
            end -= 1  # what closes it may open another, as in %year%_v1.5_%ExVideoSampler.seed%
            found = prefix[begin:end]
        filled, done = filled + prefix[done:begin] + found, end
    return filled + prefix[done:]


def _checked(prefix: str) -> str:
    names = re.split(r"[/\\]", prefix)
    stems = [name.split(".")[0].strip().upper() for name in names]
    if not stems[-1] or any(unicodedata.category(sign) == "Cc" for sign in prefix) or not _RESERVED.isdisjoint(stems):
        raise ExVideoError(f"No file can be called {prefix!r} on every system: choose a name such as video/ExVideo.")
    # Also one that leads back into the output folder, which the host takes: the page could not find its files.
    if PureWindowsPath(prefix).anchor:
        raise ExVideoError(
            f"Nothing can be saved as {prefix!r}, a full path: choose a name within ComfyUI's output folder, such as "
            "video/ExVideo."
        )
    # Where a backslash does not part names, it is in one.
    if ".." in prefix.split("/")[-1]:
        raise ExVideoError(
            f"Nothing can be saved as {prefix!r}: ComfyUI's page does not show files with two dots together in their "
            "names. Choose a name such as video/ExVideo."
        )
    return prefix
