"""Pictures for people: of the workflows in the page's template browser, of the nodes in their help, for the README.

    python -m dev.pictures [NAME …]

writes workflows/*.jpg anew, all or those named: frames of what each workflow makes, by the trained tiny model. Then, of
the page in Chromium, assets/workflow.png, assets/help.png and every node's web/docs/<node>/node.png.

Every workflow begins with another scene that nothing was trained on. There is no tiny model that paints from words, so
the one from words begins with a scene, too, under what it could have been told.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw

from dev import environment
from dev.demo import TINY_CONDITION, TINY_SAMPLING
from dev.drawn import WORKFLOWS
from dev.environment import ROOT, Environment
from dev.errors import DevError
from dev.inside import host_path
from dev.models import under_real_names
from dev.page import Page
from dev.schemas import Source
from dev.server import Server
from dev.tiny.autoencoder import SIDE
from dev.tiny.data import HELD_OUT, LONG
from dev.tiny.scenes import render, scene
from dev.tiny.trained import KEPT, write_trained_model
from dev.workflow import override_api
from exvideo_core.batch.client import Client, outputs
from exvideo_core.export import save_video

ASSETS, HELP = ROOT / "assets", ROOT / "web" / "docs"
TILE, ACROSS = 160, 3
CURVE = KEPT / "extension.png"
"""What post-tuning shows."""
FIRST, LAST = "example.png", "last.png"
"""Pictures in the input folder: the one that the workflows begin with, and the one that a video may end with."""
_SMALL = {"width": SIDE, "height": SIDE}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "ExVideoConditioning": {**_SMALL, **TINY_CONDITION},
    "ExVideoSampler": TINY_SAMPLING,
    "ExVideoLongSampler": {**_SMALL, **TINY_CONDITION, **TINY_SAMPLING},
}


class Card(NamedTuple):
    """What a workflow's picture shows: a scene by its number among those held out, and a text over it."""

    scene: int
    text: str = ""


CARDS = {
    "image_to_video": Card(11),
    "low_memory": Card(4),
    "long_video": Card(7),
    "perfect_loop": Card(2),
    "first_and_last": Card(12),
    "two_pass_upscale": Card(14),
    "interpolate_video": Card(9),
    "text_to_long_video": Card(1, "“a disc moves on”"),
}


def main(names: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_trained_model(base / "models")
        under_real_names(base / "models")
        (base / "input").mkdir()
        host = Environment(Path(sys.executable), host_path())
        with Server(host, base, cpu=True) as server, Client(server.url, server.alive) as client:
            for name, card in CARDS.items():
                if names and name not in names:
                    continue
                video = _made(client, base, name, card)
                _tiled(video, card.text).save(WORKFLOWS / f"{name}.jpg", quality=85)
                print(WORKFLOWS / f"{name}.jpg", flush=True)
            with Page(server.url) as page:
                _prepare(base, CARDS["image_to_video"])
                _of_page(page)
    with Image.open(CURVE) as curve:
        side = ACROSS * TILE
        picture = Image.new("RGB", (side, side), "white")
        curve.thumbnail((side, side))
        picture.paste(curve, (0, (side - curve.height) // 2))
        picture.save(WORKFLOWS / "post_tuning.jpg", quality=85)


def _of_page(page: Page) -> None:
    page.drop(WORKFLOWS / "image_to_video.json")
    page.set(SETTINGS)
    page.run()
    page.playing("ExVideoSave")
    page.shot(ASSETS / "workflow.png")
    page.help("ExVideoSampler")
    page.shot(ASSETS / "help.png", whole=False)
    page.reload()
    for node in Source().nodes:
        page.face(node.id, HELP / node.id / "node.png")


def _made(client: Client, base: Path, name: str, card: Card) -> list[Any]:
    """The frames that a workflow makes of a scene."""
    _prepare(base, card)
    prompt = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    prompt = override_api(prompt, {kind: values for kind, values in SETTINGS.items() if _has(prompt, kind)})
    if name == "text_to_long_video":
        prompt = _from_picture(prompt)
    if name == "first_and_last":
        prompt[prompt["3"]["inputs"]["last_image"][0]]["inputs"]["image"] = LAST
    prompt_id = client.queue(prompt)
    client.follow(prompt_id, lambda kind, data: None)
    (made,) = (item for item in outputs(client.history(prompt_id)) if item.filename.endswith(".mp4"))
    path = base / "made.mp4"
    client.download(made, path)
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return [Image.frombytes("RGB", (width, height), frame) for frame in reader]


def _prepare(base: Path, card: Card) -> None:
    """Put a scene's first frame, its last and its video into the input folder."""
    what = scene(HELD_OUT + card.scene)
    for name, frame in ((FIRST, 0), (LAST, LONG - 1)):
        pixels = (255 * render(what, frame + 1, SIDE, first=frame)[0]).round().byte().numpy()
        Image.fromarray(pixels).save(base / "input" / name)
    save_video(render(what, 64, SIDE, fps=15), base / "input" / "video.mp4", 15, crf=6)


def _has(prompt: Mapping[str, Any], kind: str) -> bool:
    return any(node["class_type"] == kind for node in prompt.values())


def _from_picture(prompt: dict[str, Any]) -> dict[str, Any]:
    """A workflow from words with a picture in the place of the painter."""
    sampler = next(key for key, node in prompt.items() if node["class_type"] == "ExVideoLongSampler")
    prompt[sampler]["inputs"]["init_image"] = ["100", 0]
    prompt["100"] = {"class_type": "LoadImage", "inputs": {"image": FIRST}}
    return prompt


def _tiled(frames: list[Any], text: str) -> Image.Image:
    """Nine frames, from the first to the last, and a line of text."""
    picture = Image.new("RGB", (ACROSS * TILE, ACROSS * TILE))
    for tile, at in enumerate(np.linspace(0, len(frames) - 1, ACROSS * ACROSS).round().astype(int)):
        place = TILE * (tile % ACROSS), TILE * (tile // ACROSS)
        picture.paste(frames[at].resize((TILE, TILE), Image.Resampling.BICUBIC), place)
    if text:
        ImageDraw.Draw(picture).text((12, 8), text, fill="white", font_size=24, stroke_width=2, stroke_fill="black")
    return picture


if __name__ == "__main__":
    try:
        environment.ensure()
        main(sys.argv[1:])
    except DevError as error:
        sys.exit(str(error))
