"""Export: frames into a video file, previewed in the node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..exvideo_core import host
from ..exvideo_core.export import Audio, check_crf, check_rate, save_preview, save_video
from ..exvideo_core.formats import format_named
from ..exvideo_core.types import ExVideoError
from .schema import audio_input, crf_input, filename_input, format_input, fps_input, schema


class ExVideoSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoSave",
            display_name="Save ExVideo",
            description="Saves frames as a video in the output folder. Dropping the file on the canvas restores the "
            "graph that made it.",
            search_aliases=["exvideo", "save video", "export mp4", "video combine", "gif", "webm", "prores"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Image.Input("images", tooltip="The frames."),
                fps_input("Frames a second. Connect fps of ExVideo Image to Video, or of ExVideo Interpolate."),
                filename_input(),
                format_input(),
                crf_input(),
                audio_input(),
            ],
            outputs=[],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        fps: float,
        filename_prefix: str,
        format: str,
        crf: int,
        audio: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        if images.ndim != 4 or not images.numel():
            raise ExVideoError(f"There are no frames to save: expected [T, H, W, channels], got {list(images.shape)}.")
        return save(images, len(images), images.shape[1:3], fps, filename_prefix, format, crf, audio, cls.hidden)


def save(
    frames: Iterable[torch.Tensor],
    length: int,
    size: tuple[int, int],
    fps: float,
    filename_prefix: str,
    format: str,
    crf: int,
    audio: dict[str, Any] | None,
    hidden: Any,
    before: Callable[[host.Destination], dict[str, Any]] = lambda to: {},
) -> io.NodeOutput:
    """Save frames as they come, and show them in the node.

    Args:
        frames: [H, W, C] each.
        length, size: how many, and their height and width in pixels.
        fps, filename_prefix, format, crf, audio: as the node takes them.
        hidden: of the node, with the graph.
        before: called before the first frame is asked for, with where the video will be; what it returns is told beside
            the video.

    Raises:
        ExVideoError: numbers, a name or a format that no file can have, or a file that cannot be made.
    """
    kind = format_named(format)
    check_rate(fps)
    check_crf(crf)
    update = host.progress()

    def counted() -> Iterable[torch.Tensor]:
        for number, frame in enumerate(frames):
            update(number, length)
            yield frame

    height, width = size
    with host.output_file(filename_prefix, kind.suffix, width, height, hidden.prompt) as to:
        kept = before(to)
        save_video(
            counted(),
            to.partial,
            fps,
            format,
            crf,
            host.graph_metadata(hidden.prompt, hidden.extra_pnginfo),
            None if audio is None or not len(audio["waveform"]) else Audio(audio["waveform"][0], audio["sample_rate"]),
            length,
            host.interruptible,
        )

    def write_preview(path: Path) -> None:
        save_preview(to.path, path, fps, format, host.interruptible)

    preview = None if kind.shown else host.preview_file(to, write_preview)
    update(length, length)
    # Of a folder of pictures, the first stands for all.
    in_output = PurePath(to.subfolder, to.name) if kind.suffix else PurePath(to.subfolder, to.name, kind.pictures % 1)
    saved = ui.SavedResult(in_output.name, _posix(in_output.parent), io.FolderType.output)
    if preview is None:
        return io.NodeOutput(ui={**ui.PreviewVideo([saved]).as_dict(), **kept})
    shown = ui.PreviewVideo([ui.SavedResult(preview.name, "", io.FolderType.temp)])
    return io.NodeOutput(ui={**shown.as_dict(), "video": [saved], **kept})


def _posix(folder: PurePath) -> str:
    """A subfolder as the page tells it; empty for the output folder itself."""
    return folder.as_posix() if folder.parts else ""


NODES = [ExVideoSave]
