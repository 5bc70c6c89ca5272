"""Render: latents into a video file as one stream, so that memory does not grow with length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..exvideo_core import host
from ..exvideo_core.decode import decoded_frames
from ..exvideo_core.export import check_crf, check_rate
from ..exvideo_core.formats import format_named
from ..exvideo_core.interpolate import MAX_MULTIPLIER, check_multiplier, interpolate, interpolated_length
from ..exvideo_core.plan import overlapped_windows
from ..exvideo_core.types import PIXELS_PER_CELL, ExVideoError, clip_latents
from .export import save
from .schema import (
    advanced,
    audio_input,
    centred_blend_input,
    crf_input,
    filename_input,
    format_input,
    fps_input,
    host_model_inputs,
    loop_input,
    overlap_input,
    schema,
    window_input,
)

KEEP = ("auto", "always", "never")
MEANT = {True: "always", False: "never"}
"""What programs mean that say it as a yes or no."""
LONG = 200
"""Frames above which `auto` keeps the latents."""


class ExVideoRender(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoRender",
            display_name="Decode, Interpolate & Save",
            description="Does what ExVideo Decode, ExVideo Interpolate and Save ExVideo do one after the other, but a "
            "few frames at a time: a long video takes no more memory than a short one.",
            search_aliases=["exvideo", "save long video", "stream", "decode to file", "video combine"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Latent.Input("samples", tooltip="The sampled clip."),
                io.Vae.Input("vae", tooltip="SVD's autoencoder with the temporal decoder."),
                fps_input("Frames a second before interpolation. Connect fps of ExVideo Image to Video."),
                io.Int.Input(
                    "multiplier",
                    default=1,
                    min=1,
                    max=MAX_MULTIPLIER,
                    tooltip="How many frames each becomes, at as many times the frames a second; 1 changes nothing.",
                ),
                window_input(),
                overlap_input(),
                filename_input(),
                format_input(),
                crf_input(),
                audio_input(),
                *host_model_inputs(),
                advanced(
                    io.Combo,
                    "keep_latents",
                    options=list(KEEP),
                    default="auto",
                    # Not in the contract, so that clients who know only that may leave it out.
                    optional=True,
                    tooltip=f"Save the latents first, as Save Latent does, so that they are not lost if rendering "
                    f"fails: auto does it for more than {LONG} frames.",
                ),
                loop_input(),
                centred_blend_input(),
            ],
            outputs=[],
        )

    @classmethod
    def validate_inputs(cls, keep_latents: str | bool | None = None) -> bool | str:
        try:
            return keep_latents is None or bool(_kept(keep_latents))  # None: it is linked, and not known yet
        except ExVideoError as error:
            return str(error)

    @classmethod
    def execute(
        cls,
        samples: dict[str, Any],
        vae: Any,
        fps: float,
        multiplier: int,
        window: int,
        overlap: int,
        filename_prefix: str,
        format: str,
        crf: int,
        audio: dict[str, Any] | None = None,
        model: Any = None,
        keep_latents: str | bool = "auto",
        loop: bool = False,
        centred_blend: bool = False,
    ) -> io.NodeOutput:
        latents = clip_latents(samples)
        check_multiplier(multiplier)
        check_rate(fps * multiplier)
        check_crf(crf)
        format_named(format)
        keep_latents = _kept(keep_latents)
        overlapped_windows(len(latents), window, overlap)  # checks the numbers
        decode = host.frame_decoder(vae, latents, window, loop)

        def pixels() -> Iterator[torch.Tensor]:
            for frame in decoded_frames(latents, decode, window, overlap, host.interruptible, loop, centred_blend):
                # With a batch of one, since some autoencoders look at its dimensions.
                yield vae.process_output(frame[None])[0]

        frames = interpolate(pixels(), multiplier, host.between_frames(model), loop=loop, check=host.interruptible)
        size = latents.shape[2] * PIXELS_PER_CELL, latents.shape[3] * PIXELS_PER_CELL
        length = interpolated_length(len(latents), multiplier, loop)

        def keep(beside: host.Destination) -> dict[str, Any]:
            if keep_latents == "never" or (keep_latents == "auto" and len(latents) <= LONG):
                return {}
            name = host.save_latents(latents, beside, cls.hidden.prompt, cls.hidden.extra_pnginfo)
            # As the host's Save Latent tells it.
            return {"latents": [ui.SavedResult(name, beside.subfolder, io.FolderType.output)]}

        return save(frames, length, size, fps * multiplier, filename_prefix, format, crf, audio, cls.hidden, keep)


def _kept(choice: str | bool) -> str:
    meant = MEANT[choice] if isinstance(choice, bool) else choice
    if meant not in KEEP:
        raise ExVideoError(f"There is no choice {choice} of keep_latents: choose {', '.join(KEEP)}.")
    return meant


NODES = [ExVideoRender]
