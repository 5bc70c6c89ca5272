"""What the pack adds to the start of ComfyUI: seconds to import it and to list its nodes, after the host's own.

python -m benchmarks.started
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from dev.environment import ROOT
from dev.inside import host_path

PROGRAM = """
import asyncio, importlib, sys, time
sys.argv = sys.argv[:1]
sys.path.insert(0, {host!r})
import comfy.options
comfy.options.enable_args_parsing()
sys.argv.append("--cpu")
import nodes
asyncio.run(nodes.init_builtin_extra_nodes())
sys.path.insert(0, {root!r})
from dev.inside import become_host
start = time.perf_counter()
pack = become_host()
extension = asyncio.run(pack.comfy_entrypoint())
asyncio.run(extension.get_node_list())
print("seconds", time.perf_counter() - start)
"""


def main() -> None:
    program = PROGRAM.format(host=str(host_path()), root=str(ROOT))
    seconds = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout.rpartition("seconds")[2]))
    print(f"{statistics.median(seconds):.3f} s, the median of {', '.join(f'{s:.3f}' for s in sorted(seconds))}")


if __name__ == "__main__":
    main()
