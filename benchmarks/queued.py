"""Many prompts in ComfyUI's queue at once: none lost, in order, in memory that stays as it is.

    python -m benchmarks.queued [--items 200]

On the tiny model, on a CPU: image to video, 5 frames of 64×64 in one step, each with a seed of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.own_process import resident
from dev.environment import HOST, ROOT, Environment
from dev.models import TINY_CHECKPOINT, TINY_EXTENSION
from dev.server import Server
from dev.workflow import override_api
from exvideo_core.batch.client import Client, outputs
from exvideo_core.tiny import write_tiny_model

FEW = 20


class Queued(NamedTuple):
    """The files in the order of the queue, none for a prompt that was lost; the prompts in the order in which they
    were queued and ended; and MiB that the server resided in after each."""

    files: list[str]
    queued: list[str]
    ended: list[str]
    resident: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queued")
    parser.add_argument("--items", type=int, default=200)
    items = parser.parse_args().items
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_model(Path(folder, "models"))
        environment = Environment(Path(sys.executable), HOST)
        with Server(environment, Path(folder), cpu=True) as server, Client(server.url, server.alive) as client:
            prompts = [_prompt(client.upload_image(ROOT / "assets" / "photo.jpg"), seed) for seed in range(items)]
            begun = time.perf_counter()
            found = run(server, client, prompts)
            seconds = time.perf_counter() - begun
    few = min(FEW, items // 2)
    first, last = (statistics.mean(part) for part in (found.resident[:few], found.resident[-few:]))
    print(f"| prompts | files | in order | seconds | MiB, mean of the first {few} | of the last {few} | difference |")
    print("|---|---|---|---|---|---|---|")
    order = "yes" if found.queued == found.ended else "no"
    files, more = len(set(found.files) - {""}), 100 * (last / first - 1)
    print(f"| {items} | {files} | {order} | {seconds:.0f} | {first:.0f} | {last:.0f} | {more:+.1f} % |")


def run(server: Server, client: Client, prompts: Sequence[dict[str, Any]]) -> Queued:
    """Queue all, then wait for each."""
    files, memory = [], []
    queued = [client.queue(prompt) for prompt in prompts]
    for prompt_id in queued:
        client.follow(prompt_id, lambda kind, data: None)
        saved = outputs(client.history(prompt_id))
        files.append(saved[0].filename if saved else "")
        memory.append(resident(server.group) / 2**20)
    return Queued(files, queued, [key for key in server.get("/history") if key in queued], memory)


def _prompt(picture: str, seed: int) -> dict[str, Any]:
    graph = json.loads((ROOT / "workflows" / "api" / "image_to_video.json").read_text(encoding="utf-8"))
    values: dict[str, dict[str, Any]] = {
        "LoadImage": {"image": picture},
        "ExVideoCheckpointLoader": {"ckpt_name": TINY_CHECKPOINT, "exvideo_name": TINY_EXTENSION},
        "ExVideoConditioning": {"width": 64, "height": 64, "num_frames": 5, "seed": seed},
        "ExVideoSampler": {"steps": 1, "seed": seed},
    }
    return override_api(graph, values)


if __name__ == "__main__":
    main()
