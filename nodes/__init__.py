"""The nodes, one file a stage, in the data's way: load → extend → condition → sample → decode → interpolate → export.

For any length, condition and sample in one: long_sample. The last three at once: render. Beside that way: post-tune →
save; and a doctor for when something is wrong.
"""

from comfy_api.latest import ComfyExtension, io

from ..exvideo_core import host
from . import (
    apply,
    condition,
    decode,
    doctor,
    export,
    interpolate,
    load,
    long_sample,
    post_tune,
    render,
    sample,
    save_extension,
)

NODES: list[type[io.ComfyNode]] = [
    *load.NODES,
    *apply.NODES,
    *condition.NODES,
    *sample.NODES,
    *long_sample.NODES,
    *decode.NODES,
    *interpolate.NODES,
    *export.NODES,
    *render.NODES,
    *post_tune.NODES,
    *save_extension.NODES,
    *doctor.NODES,
]


class ExVideoExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        host.register_model_folder()
        return NODES
