"""Decode: latents into frames."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..exvideo_core import host
from ..exvideo_core.decode import decode_windows
from ..exvideo_core.types import clip_latents
from .schema import centred_blend_input, loop_input, overlap_input, schema, window_input


class ExVideoDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoDecode",
            display_name="ExVideo Decode",
            description="Decodes a long clip in overlapped windows that are blended, so that no seams show.",
            search_aliases=["exvideo", "vae decode", "temporal decoder", "svd decode"],
            inputs=[
                io.Latent.Input("samples", tooltip="The sampled clip."),
                io.Vae.Input("vae", tooltip="SVD's autoencoder with the temporal decoder."),
                window_input(),
                overlap_input(),
                loop_input(),
                centred_blend_input(),
            ],
            outputs=[io.Image.Output("images", display_name="IMAGE", tooltip="All frames.")],
        )

    @classmethod
    def execute(
        cls,
        samples: dict[str, Any],
        vae: Any,
        window: int = 8,
        overlap: int = 4,
        loop: bool = False,
        centred_blend: bool = False,
    ) -> io.NodeOutput:
        latents = clip_latents(samples)
        decode = host.frame_decoder(vae, latents, window, loop)
        frames = decode_windows(latents, decode, window, overlap, host.progress(), loop, centred_blend)
        # Clipping to the range of pixels comes after blending, or overlapped windows would not blend exactly. One by
        # one, for the host makes copies, and of a long clip there is room for one.
        for number in range(len(frames)):
            host.interruptible()
            frames[number] = vae.process_output(frames[number : number + 1])[0]
        return io.NodeOutput(frames)


NODES = [ExVideoDecode]
