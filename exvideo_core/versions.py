"""Which ComfyUI this pack runs on. Imports next to nothing, so that it can be said on one that lacks what we use."""

from __future__ import annotations

import re

from .types import ExVideoError

OLDEST_HOST = "0.3.75"


def require_version(host_version: str) -> None:
    """Raise ExVideoError on a ComfyUI older than we support."""
    this, oldest = ([int(n) for n in re.findall(r"\d+", version)[:3]] for version in (host_version, OLDEST_HOST))
    if this < oldest:
        raise ExVideoError(f"ExVideo needs ComfyUI {OLDEST_HOST} or newer, this is {host_version}: please update it.")
