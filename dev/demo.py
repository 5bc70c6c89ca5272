"""One picture in, one MP4 out, through a real ComfyUI and the workflow that the pack ships.

With Stable Video Diffusion and an ExVideo file in the host's model folders it uses those. Else a tiny model does it,
which knows a few shapes that move in their ways: it is shown one of them, and a photograph beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dev import environment
from dev.environment import ROOT, Environment
from dev.errors import DevError
from dev.models import Models, choose, has_real

if TYPE_CHECKING:
    from exvideo_core.batch.client import Client

BASE = ROOT / ".host" / "demo"
PHOTO = ROOT / "assets" / "photo.jpg"
SCENE = ROOT / "assets" / "scene.png"
"""The first frame of a scene that the tiny model was not trained on, but of its kind."""
API_WORKFLOW = ROOT / "workflows" / "api" / "image_to_video.json"
UI_WORKFLOW = ROOT / "workflows" / "image_to_video.json"
LOADER = "ExVideoCheckpointLoader"

FRAMES = 128
TINY_SIZE = 64
REAL_SIZE = 512
SIZE_STEP = 8
SMALLEST_SIZE = 64
TINY_CONDITION = {"motion_bucket_id": 40, "augmentation_level": 0.0}
TINY_SAMPLING = {"min_cfg": 1.5, "max_cfg": 1.5, "normalize": False, "contrast": 1.0}
"""What suits the tiny model; the workflow's values are those of the release."""


class DemoError(DevError):
    """The demo cannot go on."""


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    _leave_in_order()
    try:
        _check_files(arguments)
        ready = environment.ensure(arguments.comfyui)
        if not environment.is_active():
            return _run_again(ready)
        return _run_here(ready, arguments)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (DevError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dev.demo", description=__doc__)
    parser.add_argument("--image", type=Path, metavar="PATH", help="the picture to start from")
    parser.add_argument("--frames", type=_frames, default=FRAMES, metavar="N", help="length of the video (%(default)s)")
    parser.add_argument("--size", type=_size, metavar="WxH", help=f"its size ({REAL_SIZE}, tiny models: {TINY_SIZE})")
    parser.add_argument("--steps", type=_at_least(1, "steps"), metavar="N", help="sampling steps (the workflow's)")
    parser.add_argument("--seed", type=_at_least(0, "seed"), metavar="N", help="random seed (the workflow's)")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="PATH", help="the MP4, or a folder for it")
    parser.add_argument("--port", type=_at_least(1, "port"), metavar="N", help="port of the server (a free one)")
    parser.add_argument("--comfyui", metavar="PATH", help="a ComfyUI to use (COMFYUI_PATH, else one is fetched)")
    return parser.parse_args(argv)


def _jobs(arguments: argparse.Namespace, tiny: bool) -> list[tuple[Path, Path]]:
    """The pictures to start from, and the file that each becomes; the one that matters most comes last."""
    out = arguments.out
    folder = out.is_dir() or not out.suffix
    if arguments.image is not None:
        pictures = [arguments.image]
    elif tiny:
        pictures = [PHOTO, SCENE] if folder else [SCENE]
    else:
        pictures = [PHOTO]
    names = [f"{picture.stem}_{arguments.frames}f.mp4" for picture in pictures]
    return [(p, (out / name if folder else out).absolute()) for p, name in zip(pictures, names, strict=True)]


def _at_least(smallest: int, what: str) -> Any:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{what} should be a whole number of at least {smallest}, got {text!r}")
        return value

    return convert


_frames = _at_least(1, "frames")


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) == 1:
        parts *= 2
    sides = [int(part) for part in parts if part.isdecimal()]
    if len(sides) != 2 or len(parts) != 2 or any(side % SIZE_STEP or side < SMALLEST_SIZE for side in sides):
        raise argparse.ArgumentTypeError(
            f"size should be N or WxH in multiples of {SIZE_STEP} from {SMALLEST_SIZE} on, got {text!r}"
        )
    return sides[0], sides[1]


def _check_files(arguments: argparse.Namespace) -> None:
    """What can be found out before anything is installed or started."""
    if arguments.image is not None and not arguments.image.is_file():
        raise DemoError(f"{arguments.image} should be a picture, there is no such file: give another with --image.")
    for workflow in (API_WORKFLOW, UI_WORKFLOW):
        if not workflow.is_file():
            raise DemoError(f"{workflow} is missing: restore it, for instance with `git checkout`.")
    for _, out in _jobs(arguments, tiny=True):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DemoError(
                f"{out.parent} cannot be made ({error.strerror}): give another place with --out."
            ) from error


def _run_again(ready: Environment) -> int:
    """Go on as the environment's interpreter."""
    command = [str(ready.python), "-m", "dev.demo", *sys.argv[1:]]
    if os.name != "nt":  # exec there returns to the shell at once, with the program still running
        sys.stdout.flush()
        os.execv(command[0], command)
    return subprocess.run(command).returncode


def _leave_in_order() -> None:
    """Turn the signals that would end us at once into an exception, so that every `with` does its part."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):  # Windows lacks the second
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # ignored is what nohup wants
            signal.signal(number, leave)


def _run_here(ready: Environment, arguments: argparse.Namespace) -> int:
    from exvideo_core.types import ExVideoError

    try:
        return _run(ready, arguments)
    except ExVideoError as error:
        raise DemoError(str(error)) from error


def _run(ready: Environment, arguments: argparse.Namespace) -> int:
    from dev.picture import write_clean_copy
    from dev.server import Server
    from dev.tiny.trained import write_trained_model
    from exvideo_core.batch.client import Client, outputs
    from exvideo_core.batch.progress import Progress
    from exvideo_core.batch.workflow import titles

    assert ready.comfyui is not None  # asked for with the default of `ensure`
    if not has_real(ready.comfyui / "models", BASE / "models"):
        write_trained_model(BASE / "models")
    print("Starting ComfyUI", flush=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        Server(ready, BASE, port=arguments.port) as server,
        Client(server.url, server.alive) as client,
    ):
        print(f"ComfyUI answers at {server.url}", flush=True)
        info = client.object_info()
        models = _choose_models(info.get(LOADER, {"name": LOADER}))
        size = arguments.size or ((TINY_SIZE, TINY_SIZE) if models.tiny else (REAL_SIZE, REAL_SIZE))
        jobs = _jobs(arguments, models.tiny)
        for source, out in jobs:
            picture = Path(scratch, f"{source.stem}.png")
            write_clean_copy(source, picture)
            overrides = _overrides(arguments, models, size, client.upload_image(picture))
            prompt, workflow = _workflows(overrides, info)
            with Progress(titles(prompt, info)) as progress:
                prompt_id = client.queue(prompt, workflow)
                client.follow(prompt_id, progress.on_event)
            _fetch(client, outputs(client.history(prompt_id)), out)
    _summarise(models, arguments.frames, size, [out for _, out in jobs])
    return 0


def _choose_models(loader: dict[str, Any]) -> Models:
    from dev.workflow import options

    return choose(options(loader, "ckpt_name"), options(loader, "exvideo_name"))


def _overrides(
    arguments: argparse.Namespace, models: Models, size: tuple[int, int], picture: str
) -> dict[str, dict[str, Any]]:
    given = {name: value for name in ("seed", "steps") if (value := getattr(arguments, name)) is not None}
    seed = {name: value for name, value in given.items() if name == "seed"}
    condition, sampling = (TINY_CONDITION, TINY_SAMPLING) if models.tiny else ({}, {})
    return {
        "LoadImage": {"image": picture},
        LOADER: {"ckpt_name": models.checkpoint, "exvideo_name": models.extension},
        "ExVideoConditioning": {
            "width": size[0], "height": size[1], "num_frames": arguments.frames, **condition, **seed,
        },
        "ExVideoSampler": {**sampling, **given},
    }  # fmt: skip


def _workflows(overrides: dict[str, dict[str, Any]], info: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    from dev.workflow import override_api, override_ui

    api = json.loads(API_WORKFLOW.read_text(encoding="utf-8"))
    page = json.loads(UI_WORKFLOW.read_text(encoding="utf-8"))
    return override_api(api, overrides), override_ui(page, overrides, info)


def _fetch(client: Client, saved: list[Any], out: Path) -> None:
    videos = [item for item in saved if item.filename.endswith(".mp4")]
    if not videos:
        names = [item.filename for item in saved]
        raise DemoError(f"The workflow should have saved an MP4, it saved {names or 'nothing'}: see {BASE}/server.log.")
    client.download(videos[-1], out)


def _summarise(models: Models, frames: int, size: tuple[int, int], made: list[Path]) -> None:
    print(f"{frames} frames of {size[0]}x{size[1]} by {models.checkpoint} with {models.extension}")
    if models.tiny:
        print("This model is tiny and was trained on three kinds of moving shapes: of photographs it knows nothing.")
    for out in made:
        print(out, flush=True)


if __name__ == "__main__":
    sys.exit(main())
