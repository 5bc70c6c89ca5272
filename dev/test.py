"""Everything that is checked before a change is accepted: lint, types, tests. `HOST=none` leaves out a ComfyUI."""

from __future__ import annotations

import os
import subprocess
import sys

from dev.environment import ROOT, SetupError, ensure


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

    steps = (
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "mypy"],
        # -P keeps the repository's root off sys.path, where our `nodes` would hide the host's module of that name.
        ["-P", "-m", "pytest", *pytest_arguments],
    )
    first_failure = 0
    for step in steps:
        print("$ python", *step, flush=True)
        status = subprocess.run([str(ready.python), *step], cwd=ROOT, env=child).returncode
        first_failure = first_failure or status
    return first_failure


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
