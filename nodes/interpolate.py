"""Interpolate: frames between frames."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..exvideo_core import conditioning, host
from ..exvideo_core.export import check_rate
from ..exvideo_core.interpolate import MAX_MULTIPLIER, check_multiplier, interpolate, interpolated_length
from .schema import fps_input, host_model_inputs, loop_input, schema


class ExVideoInterpolate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoInterpolate",
            display_name="ExVideo Interpolate",
            description="Puts new frames between those of a video, by optical flow: smoother, or slower. "
            "Needs no model; the frames that come in stay as they are, and cuts stay cuts.",
            search_aliases=["exvideo", "frame interpolation", "slow motion", "rife", "film", "smooth video"],
            inputs=[
                io.Image.Input("images", tooltip="The frames."),
                io.Int.Input(
                    "multiplier",
                    default=2,
                    min=1,
                    max=MAX_MULTIPLIER,
                    tooltip="How many frames each becomes: 2 puts one between every two, 1 leaves the video as it is.",
                ),
                fps_input("Frames a second of what comes in. Connect fps of ExVideo Image to Video."),
                *host_model_inputs(),
                loop_input(),
            ],
            outputs=[
                io.Image.Output(
                    "interpolated", display_name="IMAGE", tooltip="The frames that came in, and those between them."
                ),
                # An output may not carry the id of an input.
                io.Float.Output("video_fps", display_name="fps", tooltip="Frames a second, to save the video with."),
            ],
        )

    @classmethod
    def execute(
        cls, images: torch.Tensor, multiplier: int, fps: float, model: Any = None, loop: bool = False
    ) -> io.NodeOutput:
        check_multiplier(multiplier)
        check_rate(fps)
        frames = conditioning.rgb(images)
        result = frames.new_empty(interpolated_length(len(frames), multiplier, loop), *frames.shape[1:])
        update = host.progress()
        made = interpolate(frames, multiplier, host.between_frames(model), loop=loop, check=host.interruptible)
        for number, frame in enumerate(made):
            result[number] = frame
            update(number + 1, len(result))
        return io.NodeOutput(result, fps * multiplier)


NODES = [ExVideoInterpolate]
