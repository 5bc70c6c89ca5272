"""The doctor's checks that need no ComfyUI: models by their headers, ffmpeg, memory, optical flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path

from ..budget import BUDGETS
from ..extension import BIAS, KERNEL, LAYERS, TABLE, check_fit, check_layout, extension_shapes, release_names
from ..files import Shapes, looks_like, open_tensors
from ..flow import default_flow, opencv_flow
from ..formats import FORMATS, encodable_formats, ffmpeg
from ..svd import UNET_PREFIX, UNetLayout, read_layout
from ..types import ClipShape, ExVideoError, LatentShape
from .findings import Finding, of_error

FRAMES = 128
"""Of the released extension."""
SIZES = ((512, 512), (1024, 576), (1024, 1024))
"""Widths and heights to tell the memory for; ExVideo was trained at the first."""


def check_models(checkpoints: Mapping[str, Path], extensions: Mapping[str, Path]) -> Iterator[Finding]:
    """Which files are SVD and which are extensions, and whether they fit each other. Reads headers alone.

    Args:
        checkpoints, extensions: files by the names that the loaders list.
    """
    bases: dict[str, Shapes] = {}
    for name, path in checkpoints.items():
        state = "wrong"
        try:
            shapes = _shapes(path)
            kind = looks_like(shapes)
            if kind == "an ExVideo extension":
                yield Finding(f"{name} is {kind} among the checkpoints", "warn", "Move it into models/exvideo.")
            if "Stable Video Diffusion" not in kind:
                continue
            state = "warn"  # whole, so most likely a relative of SVD, for other nodes
            channels = read_layout(name, shapes).unet.channels
        except ExVideoError as error:
            yield of_error(error, state)
            continue
        bases[name] = {key.removeprefix(UNET_PREFIX): shape for key, shape in shapes.items()}
        yield Finding(f"{name} is SVD, {channels} channels wide")
    if not bases:
        fix = "Download svd_xt.safetensors of stabilityai/stable-video-diffusion-img2vid-xt into the folder above."
        yield Finding("There is no SVD checkpoint", "wrong", fix)
    found = False
    for name, path in extensions.items():
        state = "wrong"
        try:
            shapes = _shapes(path)
            # Older packs keep other files in folders that we read too.
            state = "wrong" if looks_like(shapes) == "an ExVideo extension" else "warn"
            shapes = {key: shapes[theirs] for key, theirs in release_names(shapes).items()}
            frames = check_layout(name, shapes)
            found = True
            yield _fit(name, frames, shapes, bases)
        except ExVideoError as error:
            yield of_error(error, state)
    if not found:
        fix = "Download model.fp16.safetensors of ECNU-CILab/ExVideo-SVD-128f-v1 into the folder above."
        yield Finding("There is no ExVideo extension", "wrong", fix)


def _shapes(path: Path) -> Shapes:
    with open_tensors(path, "Download it again, or remove it.") as (_, shapes):
        return shapes


def _fit(name: str, frames: int, shapes: Shapes, bases: Mapping[str, Shapes]) -> Finding:
    """An extension, and which bases it fits; ExVideoError where it fits none of them."""
    fitting, misfit = [], None
    for base, unet in bases.items():
        try:
            check_fit(name, shapes, unet)
            fitting.append(base)
        except ExVideoError as error:
            misfit = error
    if misfit and not fitting:
        raise misfit
    return Finding(f"{name} extends to {frames} frames" + (f", and fits {', '.join(fitting)}" if fitting else ""))


def check_formats() -> Iterator[Finding]:
    """Where ffmpeg is, and what it can make."""
    try:
        offered = encodable_formats()
    except ExVideoError as error:
        yield of_error(error)
        return
    missing = [name for name in FORMATS if name not in offered]
    yield Finding(f"ffmpeg is {ffmpeg()} and makes {', '.join(offered) or 'nothing that we know'}")
    if missing:
        fix = "Unset the environment variable IMAGEIO_FFMPEG_EXE, or let it name an ffmpeg with these encoders."
        yield Finding(f"ffmpeg cannot make {', '.join(missing)}", "warn" if offered else "wrong", fix)


def extended_parameters() -> int:
    """Parameters of SVD's UNet with the release's extension: those it has, and the new ones."""
    unet = dict(UNetLayout().tensors())
    channels = {block: unet[f"{layer}.norm.weight"][0] for block, layer in LAYERS.items()}
    extension = extension_shapes(FRAMES, channels, UNetLayout().context)
    new = [shape for key, shape in extension.items() if key.endswith((TABLE, KERNEL, BIAS))]
    return sum(map(prod, (*unet.values(), *new)))


def check_memory(device: str, free: int, needed: Callable[[str, LatentShape], int]) -> Iterator[Finding]:
    """How many frames fit, by size and by the setting `memory` of Apply ExVideo.

    Args:
        device: its name.
        free: bytes there, weights apart.
        needed: bytes that a pass takes at least, by setting and clip.
    """
    yield Finding(f"{free / 2**30:.1f} GiB are free on {device}, beside the weights of SVD and ExVideo")
    for width, height in SIZES:
        most = {
            setting: sum(needed(setting, ClipShape(n, height, width).latent) <= free for n in range(1, FRAMES + 1))
            for setting in BUDGETS
        }
        told = ", ".join(f"{frames} with {setting}" for setting, frames in most.items())
        what = f"At {width}×{height}, frames that fit, by memory of Apply ExVideo: {told}"
        if max(most.values()) < (FRAMES if (width, height) == SIZES[0] else 1):
            yield Finding(what, "warn", "Close other programs, or make smaller or shorter videos.")
        else:
            yield Finding(what)


def check_flow() -> Iterator[Finding]:
    """Whose optical flow interpolates."""
    whose = "OpenCV's" if default_flow() is opencv_flow else "the pack's own"
    yield Finding(f"Frames are interpolated by {whose} optical flow")
