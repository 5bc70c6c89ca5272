"""Load: files into sockets."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..exvideo_core import host
from ..exvideo_core.extension import read_extension
from .schema import ExVideo, extension_input, memory_input, schema

PLAIN = "none (SVD alone)"


class ExVideoLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoLoader",
            display_name="Load ExVideo Extension",
            description="Loads an ExVideo extension, the trained temporal layers that let SVD make longer videos.",
            search_aliases=["exvideo", "svd extension", "long video", "128 frames"],
            inputs=[extension_input()],
            outputs=[ExVideo.Output("exvideo", display_name="EXVIDEO", tooltip="Connect to Apply ExVideo.")],
        )

    @classmethod
    def execute(cls, exvideo_name: str) -> io.NodeOutput:
        return io.NodeOutput(read_extension(host.model_path(host.MODEL_FOLDER, exvideo_name)))

    @classmethod
    def fingerprint_inputs(cls, exvideo_name: str | None) -> list[int]:
        return _fingerprint(exvideo_name)


class ExVideoCheckpointLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoCheckpointLoader",
            display_name="Load SVD + ExVideo",
            description="Loads Stable Video Diffusion and extends it with ExVideo, ready to sample long videos.",
            search_aliases=["exvideo", "svd", "stable video diffusion", "image to video", "image only checkpoint"],
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=host.model_names("checkpoints"),
                    tooltip="A Stable Video Diffusion checkpoint, from models/checkpoints: svd_xt.safetensors.",
                ),
                extension_input(PLAIN),
                memory_input(),
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="SVD with the extension applied in full."),
                io.ClipVision.Output("clip_vision", display_name="CLIP_VISION", tooltip="SVD's image encoder."),
                io.Vae.Output("vae", display_name="VAE", tooltip="SVD's autoencoder with the temporal decoder."),
            ],
        )

    @classmethod
    def execute(cls, ckpt_name: str, exvideo_name: str, memory: str = "auto") -> io.NodeOutput:
        # The extension first: it is refused in a moment, a checkpoint takes a while to load.
        plain = exvideo_name == PLAIN
        extension = None if plain else read_extension(host.model_path(host.MODEL_FOLDER, exvideo_name))
        model, clip_vision, vae = host.load_svd(host.model_path("checkpoints", ckpt_name))
        if extension:
            model = host.apply_extension(model, extension, memory=memory)
        return io.NodeOutput(model, clip_vision, vae)

    @classmethod
    def fingerprint_inputs(cls, ckpt_name: str | None, exvideo_name: str | None, **_: Any) -> list[int]:
        return [*host.model_fingerprint("checkpoints", ckpt_name), *_fingerprint(exvideo_name)]


def _fingerprint(exvideo_name: str | None) -> list[int]:
    # Post-tuning writes its extension again and again, under one name.
    return host.model_fingerprint(host.MODEL_FOLDER, exvideo_name)


NODES = [ExVideoLoader, ExVideoCheckpointLoader]
