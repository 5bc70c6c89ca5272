"""What the doctor finds, and how it tells it. On Python alone, so that it works where nothing else does."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

OLDEST_PYTHON = (3, 10)
PACKAGES: Mapping[str, str] = {
    "torch": "torch",  # first: where it is missing, so is all that follows
    "safetensors": "safetensors",
    "einops": "einops",
    "kornia": "kornia",
    "imageio-ffmpeg": "imageio_ffmpeg",
}
"""What the pack needs, by the name to install it under, and a module of it."""

_REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        what: was found.
        state: ok; warn, where only some things will not work; or wrong.
        fix: what to do about it, in one sentence.
    """

    what: str
    state: str = "ok"
    fix: str = ""


def of_error(error: Exception, state: str = "wrong") -> Finding:
    """A finding out of one of our errors, which end with what to do, after a full stop or else a colon."""
    said = str(error)
    what, _, fix = said.rpartition(". " if ". " in said else ": ")
    return Finding(what, state, fix[:1].upper() + fix[1:])


def guarded(subject: str, check: Callable[..., Iterable[Finding]], *args: object) -> list[Finding]:
    """What a check finds; where it fails itself, that is the finding."""
    found: list[Finding] = []
    try:
        found.extend(check(*args))
    except Exception as error:
        what = f"{subject} could not be looked at: {type(error).__name__}, {error}"
        found.append(Finding(what, "wrong", "If this text does not help, report it as a bug of this pack."))
    return found


def is_wrong(findings: Iterable[Finding]) -> bool:
    return any(finding.state == "wrong" for finding in findings)


def report(findings: Sequence[Finding]) -> str:
    """The findings as text for people: one a line, each fix under what it is for, and how it stands in the end."""
    lines = [
        line
        for what, state, fix in findings
        for line in (f"{state:<5}  {what}", *([f"       fix: {fix}"] if fix else []))
    ]
    count = sum(finding.state == "wrong" for finding in findings)
    return "\n".join([*lines, "", f"{count} wrong; each fix is above." if count else "Nothing is wrong."])


def check_packages() -> Iterator[Finding]:
    """Python, and the packages that the pack needs."""
    python = f"Python {platform.python_version()}, {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        yield Finding(python, "wrong", "Run ComfyUI with Python 3.10 or newer.")
    else:
        yield Finding(python)
    versions = []
    for name, module in PACKAGES.items():
        try:
            importlib.import_module(module)
            versions.append(f"{name} {metadata.version(name)}")
        except Exception as error:  # a damaged one may raise anything
            what = f"The package {name} cannot be imported ({error})"
            if name == "torch":
                yield Finding(what, "wrong", "Use the Python that runs ComfyUI: it has torch.")
                return
            yield Finding(what, "wrong", f'Run "{sys.executable}" -m pip install -r "{_REQUIREMENTS}".')
    if versions:
        yield Finding(", ".join(versions))
