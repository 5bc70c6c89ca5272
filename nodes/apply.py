"""Extend: an extension onto a model, or a new extension out of one."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..exvideo_core import host
from ..exvideo_core.extension import Extension, new_extension
from .schema import MAX_FRAMES, ExVideo, memory_input, schema


class ExVideoInit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoInit",
            display_name="New ExVideo Extension",
            description="Makes an untrained extension of an SVD model: the start of post-tuning. "
            "On up to 25 frames it changes nothing; beyond, SVD's positions bounce back and forth.",
            search_aliases=["exvideo", "post-tuning", "train svd", "new extension"],
            inputs=[
                io.Model.Input("model", tooltip="A Stable Video Diffusion model."),
                io.Int.Input(
                    "num_frames",
                    default=128,
                    min=1,
                    max=MAX_FRAMES,
                    tooltip="The longest clip of the extension, in frames. SVD-XT alone knows 25.",
                ),
            ],
            outputs=[ExVideo.Output("exvideo", display_name="EXVIDEO", tooltip="The untrained extension.")],
        )

    @classmethod
    def execute(cls, model: Any, num_frames: int) -> io.NodeOutput:
        return io.NodeOutput(new_extension(host.base_weights(model), num_frames))


class ExVideoApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoApply",
            display_name="Apply ExVideo",
            description="Extends an SVD model for long videos. What comes out is an ordinary MODEL: samplers, LoRAs, "
            "merging and offloading work on it. A second one replaces the first.",
            search_aliases=["exvideo", "extend svd", "long video", "128 frames", "patch model"],
            inputs=[
                io.Model.Input("model", tooltip="A Stable Video Diffusion model. It is left as it is."),
                ExVideo.Input("exvideo", tooltip="An extension of the same width as the model."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="1 is the extension as trained, 0 the base model; all its weights blend linearly between.",
                ),
                memory_input(),
            ],
            outputs=[io.Model.Output("extended", display_name="MODEL", tooltip="The extended model.")],
        )

    @classmethod
    def execute(cls, model: Any, exvideo: Extension, strength: float = 1.0, memory: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(host.apply_extension(model, exvideo, strength, memory))


NODES = [ExVideoInit, ExVideoApply]
