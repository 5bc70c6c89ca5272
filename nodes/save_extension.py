"""Keep: an extension into a file of the release's own format."""

from __future__ import annotations

from pathlib import PurePosixPath

import torch
from comfy_api.latest import io, ui

from ..exvideo_core import host
from ..exvideo_core.extension import Extension, write_extension
from ..exvideo_core.types import ExVideoError
from .schema import ExVideo, advanced, schema

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class ExVideoSaveExtension(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoSaveExtension",
            display_name="Save ExVideo Extension",
            description="Saves an extension in the format of the released one, where Load ExVideo Extension finds it.",
            search_aliases=["exvideo", "save extension", "export extension", "post-tuning"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                ExVideo.Input("exvideo", tooltip="The extension to save."),
                io.String.Input(
                    "filename_prefix",
                    default="exvideo/ExVideo",
                    tooltip="Subfolder and beginning of the name in the output folder; a number is added. "
                    "Files in output/exvideo are found by Load ExVideo Extension.",
                ),
                advanced(
                    io.Combo,
                    "precision",
                    options=list(PRECISIONS),
                    default="fp16",
                    # Not in the contract, so that clients who know only that may leave it out.
                    optional=True,
                    tooltip="fp16 is the release's. fp32 keeps every digit, for more training, and is twice as large.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, exvideo: Extension, filename_prefix: str, precision: str = "fp16") -> io.NodeOutput:
        if precision not in PRECISIONS:
            raise ExVideoError(f"There is no precision {precision}: choose {', '.join(PRECISIONS)}.")
        graph = host.graph_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        with host.output_file(filename_prefix, ".safetensors", prompt=cls.hidden.prompt) as to:
            write_extension(exvideo, to.partial, PRECISIONS[precision], graph)
        return io.NodeOutput(ui=ui.PreviewText(PurePosixPath(to.subfolder, to.name).as_posix()))


NODES = [ExVideoSaveExtension]
