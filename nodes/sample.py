"""Sample: the host's Euler sampler over the reference's noise levels."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..exvideo_core import host, sampling, schedule
from ..exvideo_core.pinning import before_contrast
from ..exvideo_core.types import clip_latents
from .schema import schema, seed_input


def steps_input() -> Any:
    return io.Int.Input(
        "steps",
        default=25,
        min=1,
        max=10000,
        tooltip="Model calls. More is finer and slower; the authors used 50 for a first pass, 25 for a second.",
    )


def min_cfg_input() -> Any:
    return io.Float.Input(
        "min_cfg",
        default=2.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="Guidance at the first frame: higher follows the picture more closely.",
    )


def max_cfg_input() -> Any:
    return io.Float.Input(
        "max_cfg",
        default=2.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="Guidance at the last frame; it grows linearly in between.",
    )


def normalize_input() -> Any:
    return io.Boolean.Input(
        "normalize",
        default=True,
        tooltip="Give every frame the brightness and contrast of the whole clip, against drift.",
    )


def contrast_input() -> Any:
    return io.Float.Input(
        "contrast",
        default=1.2,
        min=0.0,
        max=10.0,
        step=0.01,
        tooltip="Factor on the finished latents. The authors use 1.2 against greyness; 1 leaves them.",
    )


def _denoise_input() -> Any:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="How much of the noise to go through: 1 makes a video from nothing, 0.5 reworks an init_video.",
    )


class ExVideoScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoScheduler",
            display_name="ExVideo Sigmas",
            description="The noise levels of the ExVideo reference, exactly, also for a denoise below 1. "
            "For Sampler Custom; ExVideo Sampler has them built in.",
            search_aliases=["exvideo", "karras", "sigmas", "svd scheduler"],
            inputs=[
                io.Model.Input("model", tooltip="The SVD model to be sampled."),
                steps_input(),
                _denoise_input(),
            ],
            outputs=[io.Sigmas.Output("sigmas", display_name="SIGMAS", tooltip="Falling to 0, for SamplerCustom.")],
        )

    @classmethod
    def execute(cls, model: Any, steps: int, denoise: float) -> io.NodeOutput:
        host.require_svd(model)
        return io.NodeOutput(schedule.sigmas(steps, denoise))


class ExVideoSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoSampler",
            display_name="ExVideo Sampler",
            description="Samples a long video as the ExVideo authors do: Euler, their noise levels, guidance from "
            "the first frame to the last, normalised brightness.",
            search_aliases=["exvideo", "ksampler", "svd sampler", "long video"],
            inputs=[
                io.Model.Input("model", tooltip="SVD with ExVideo applied."),
                io.Conditioning.Input("positive", tooltip="What the video follows: of ExVideo Image to Video."),
                io.Conditioning.Input("negative", tooltip="What guidance leads away from: of ExVideo Image to Video."),
                io.Latent.Input("latent", tooltip="The clip to start from; a noise mask pins frames."),
                seed_input("the noise the video is made from"),
                steps_input(),
                min_cfg_input(),
                max_cfg_input(),
                _denoise_input(),
                normalize_input(),
                contrast_input(),
            ],
            outputs=[io.Latent.Output("samples", display_name="LATENT", tooltip="The sampled clip, to be decoded.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        min_cfg: float,
        max_cfg: float,
        denoise: float,
        normalize: bool,
        contrast: float,
    ) -> io.NodeOutput:
        host.require_svd(model)
        noise = sampling.latent_noise(clip_latents(latent), seed, latent.get("batch_index"))
        guidance = None if min_cfg == max_cfg else sampling.linear_guidance(min_cfg, max_cfg)
        start, sigmas = before_contrast(latent, contrast), schedule.sigmas(steps, denoise)
        samples = host.sample_euler(model, positive, negative, noise, start, sigmas, max_cfg, guidance, seed)
        # What else a LATENT carries, such as a mask, goes on, as with the host's samplers.
        return io.NodeOutput({**latent, "samples": sampling.post_process(samples, normalize, contrast)})


NODES = [ExVideoScheduler, ExVideoSampler]
