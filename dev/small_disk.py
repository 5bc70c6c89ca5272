"""A small disk, to try what a full one does: mounted for one program, and gone when that ends. Linux alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from dev.environment import ROOT

_MOUNT = 'mount -t tmpfs -o size={size} tmpfs "$1" && shift && exec "$@"'


def on_small_disk(folder: Path, size: str, script: str, *arguments: str) -> Any:
    """Run a Python program while a disk is mounted at a folder.

    Args:
        folder: what is in it is hidden meanwhile.
        size: of the disk, such as 400k.
        script: the program; the last line that it writes is JSON.
        arguments: its own.

    Returns:
        What that line says; None where no disk can be mounted.

    Raises:
        RuntimeError: the program failed, in its words.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    mount = _MOUNT.format(size=size)
    disk = [unshare, "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(folder)]
    if subprocess.run([*disk, "true"], capture_output=True, check=False).returncode:
        return None
    done = subprocess.run(
        [*disk, sys.executable, "-P", "-c", script, *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])
