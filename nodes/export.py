"""Export: frames into a video file, previewed in the node."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..exvideo_core import host
from ..exvideo_core.export import FORMATS, Audio, format_named, save_video
from .schema import schema


class ExVideoSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoSave",
            display_name="Save ExVideo",
            description="Saves frames as a video in the output folder. Dropping the file on the canvas restores the "
            "graph that made it.",
            search_aliases=["exvideo", "save video", "export mp4", "video combine"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Image.Input("images", tooltip="The frames."),
                io.Float.Input(
                    "fps",
                    default=30.0,
                    min=0.01,
                    max=1000.0,
                    step=0.01,
                    tooltip="Frames a second. Connect fps of ExVideo Image to Video.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/ExVideo",
                    tooltip="Subfolder and beginning of the name in the output folder; a number is added. "
                    "%date:yyyy-MM-dd% and the host's other patterns work.",
                ),
                io.Combo.Input("format", options=list(FORMATS), default="mp4-h264", tooltip="Container and codec."),
                io.Int.Input(
                    "crf",
                    default=19,
                    min=0,
                    max=51,
                    tooltip="Quality: 17 to 23 looks good, higher is smaller and worse. 0 keeps everything, but few "
                    "players can show it.",
                ),
                io.Audio.Input("audio", optional=True, tooltip="Sound, cut to the length of the video."),
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
        height, width = images.shape[1:3]
        to = host.output_destination(filename_prefix, format_named(format).suffix, width, height)
        update = host.progress()
        save_video(
            images,
            to.path,
            fps,
            format,
            crf,
            host.graph_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo),
            None if audio is None else Audio(audio["waveform"][0], audio["sample_rate"]),
            lambda frame: update(frame + 1, len(images)),
        )
        return io.NodeOutput(ui=ui.PreviewVideo([ui.SavedResult(to.name, to.subfolder, io.FolderType.output)]))


NODES = [ExVideoSave]
