"""The doctor from the command line: looks at everything that this pack needs, and says what to do.

    python -m exvideo_core.doctor
    python -m exvideo_core.doctor -- --base-directory folder

Run in this pack's folder, with ComfyUI's Python. Ends with status 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from .findings import Finding, check_packages, guarded, is_wrong, of_error, report


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m exvideo_core.doctor",
        description="Look at everything that ExVideo needs, and say what is wrong and how to mend it.",
        epilog="What follows -- goes to ComfyUI: start it here as you do there, with --cpu, say.",
    )
    words = sys.argv[1:]
    ours = words.index("--") if "--" in words else len(words)
    parser.parse_args(words[:ours])
    findings = guarded("The packages", check_packages)
    if not is_wrong(findings):  # without them nothing else can be looked at
        findings += guarded("ComfyUI", _diagnose, words[ours + 1 :])
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter
    sys.stdout.write(report(findings) + "\n")
    sys.exit(int(is_wrong(findings)))


def _diagnose(arguments: Sequence[str]) -> Iterable[Finding]:
    # Only now: these need the packages.
    from ..standalone import start_host
    from ..types import ExVideoError

    try:
        start_host(arguments)
    except ExVideoError as error:
        return [of_error(error)]
    from .. import host

    host.add_folders_as_at_start()
    host.register_model_folder()
    return host.diagnose()


if __name__ == "__main__":
    main()
