"""One writer to a folder, also among processes that know nothing of each other."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .types import ExVideoError


@contextmanager
def locked(folder: Path, told: str, name: str = ".lock") -> Iterator[None]:
    """Keep others from a folder, or from what else a lock of that name stands for.

    The system itself lets go of the lock of a process that is killed. Where files cannot be locked, as on some network
    drives, nobody is kept from it.

    Args:
        folder: made where it is missing, and removed again where nothing else came into it.
        told: what a person is told where another process has it.
        name: of the lock, a file in the folder as long as it is held.

    Raises:
        ExVideoError: another process has it.
    """
    path, is_new = folder / name, not folder.exists()
    file = _taken(path, told)
    try:
        yield
    finally:
        if file >= 0:
            with suppress(OSError):
                path.unlink()
            os.close(file)
            if sys.platform == "win32":  # which removes no file that is open
                with suppress(OSError):
                    path.unlink()
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def _taken(path: Path, told: str) -> int:
    """The lock, opened, or -1 where there can be none."""
    while (file := _opened(path)) >= 0:
        if _is_others(file):
            os.close(file)
            raise ExVideoError(told)
        with suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(file)):
                break
        # Whoever had it removed it meanwhile, so that it keeps nobody out.
        os.close(file)
    return file


def _opened(path: Path) -> int:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    return -1


def _is_others(file: int) -> bool:
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
