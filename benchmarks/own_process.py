"""Cases in processes of their own, so that what one leaves in memory is not counted for the next."""

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
    """MiB of memory that this process resided in at most. Linux only."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024
