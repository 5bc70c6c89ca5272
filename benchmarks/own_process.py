"""Cases in processes of their own, so that what one leaves in memory is not counted for the next. Linux only."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


def measure(module: str, *arguments: object) -> dict[str, Any]:
    """What `python -m module arguments…` prints as its last line, in JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def most_resident() -> float:
    """MiB of memory that this process resided in at most."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


def resident(group: int | None) -> int:
    """Bytes that the processes of a group reside in, such as those of a server and what it started."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if int(Path(status.parent, "stat").read_text().rpartition(")")[2].split()[2]) == group:
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
                total += int(lines.get("VmRSS", "0 kB").split()[0]) * 1024
        except (OSError, ValueError):  # it ended meanwhile
            continue
    return total
