"""Everything that is checked before a change is accepted: lint, types, tests. `HOST=none` leaves out a ComfyUI.

All tests run in four processes, a file of them in one, since servers and encoders are waited for much of the time:
enough to keep two cores busy, in 15 GB of memory. Those that take most of the memory run after them. With pytest's own
arguments there is one process, as usual.
"""

from __future__ import annotations

import os
import subprocess
import sys

from dev.environment import ROOT, SetupError, ensure

PROCESSES = 4
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**29), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
"""Lets glibc keep what tensors free: the system's work of giving it anew is a twentieth of all time."""
QUICK = "not long and not page"
"""What is neither left to `make parity` nor to `make page`."""


def main(pytest_arguments: list[str]) -> int:
    """Run all steps; returns the exit status of the first that failed."""
    with_host = os.environ.get("HOST", "").lower() != "none"
    try:
        ready = ensure(host=with_host)
    except SetupError as error:
        hint = "\n(HOST=none runs the tests that need no ComfyUI.)" if with_host else ""
        print(f"{error}{hint}", file=sys.stderr)
        return 1

    child = dict(os.environ)
    if ready.comfyui is not None:
        child["COMFYUI_PATH"] = str(ready.comfyui)
    else:
        child["EXVIDEO_HOST"] = "none"
        child.pop("COMFYUI_PATH", None)
        print("HOST=none: the tests that need a ComfyUI are left out.", flush=True)

    # -P keeps the repository's root off sys.path, where our `nodes` would hide the host's module of that name.
    pytest = ["-P", "-m", "pytest"]
    # A process that waits for a thread without a core spins, so each gets its share of the cores.
    share = {**child, **KEPT_MEMORY, "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // PROCESSES, 1))}
    checks = (["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."], ["-m", "mypy"])
    steps = [(check, child) for check in checks]
    if pytest_arguments:
        steps += [([*pytest, *pytest_arguments], child)]
    else:
        # In the order of tests/conftest.py, instead of files with many tests first.
        spread = ["-n", str(PROCESSES), "--dist", "loadfile", "--no-loadscope-reorder"]
        together = [*spread, "-m", f"{QUICK} and not alone"]
        steps += [([*pytest, *together], share)]
        if with_host:
            steps += [([*pytest, "-m", f"{QUICK} and alone"], child)]
    first_failure = 0
    for step, environment in steps:
        print("$ python", *step, flush=True)
        status = subprocess.run([str(ready.python), *step], cwd=ROOT, env=environment).returncode
        first_failure = first_failure or status
    return first_failure


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
