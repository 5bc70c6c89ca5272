"""One run to a folder, also among processes that know nothing of each other."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..types import ExVideoError

_NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others from training in a folder. The system itself lets go of the lock of a process that is killed.

    Where files cannot be locked, as on some network drives, nobody is kept from it.

    Raises:
        ExVideoError: another process trains there.
    """
    file = -1
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if file >= 0 and _is_taken(file):
            raise ExVideoError(
                f"Another post-tuning is running in {folder}: wait until it has ended, or choose another run_name or "
                "--output."
            )
        yield
    finally:
        # It stays there, for another process may just have opened it.
        if file >= 0:
            os.close(file)


def _is_taken(file: int) -> bool:
    """Lock a file, unless another process has done so."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # as the one and the other system say it
        return True
    except OSError:
        return False
    return False
