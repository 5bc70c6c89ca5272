"""Sample at length: clips longer than the extension reaches, as a chain of segments or in drifting windows."""

from __future__ import annotations

import logging
import time
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io

from ..exvideo_core import conditioning, host, sampling, schedule
from ..exvideo_core.budget import BUDGETS
from ..exvideo_core.decode import decode_windows
from ..exvideo_core.files import checksum
from ..exvideo_core.long_sampling import sample_chain
from ..exvideo_core.pinning import CHAIN_FADE, pinned_latent
from ..exvideo_core.plan import Segment, chain_segments, window_size
from ..exvideo_core.run_store import RunStore
from ..exvideo_core.types import ClipShape, ExVideoError
from .condition import (
    augmentation_input,
    check_video,
    condition,
    first_latents,
    height_input,
    motion_input,
    speed_input,
    video_input,
    width_input,
)
from .sample import contrast_input, max_cfg_input, min_cfg_input, normalize_input, steps_input
from .schema import MAX_FRAMES, advanced, schema, seed_input

MODES = ("chain", "windows")
TOKENS = ("segment", "picture")
_NEIGHBOURS = 4
"""Frames on either side of one that is decoded alone, for the decoder to look at."""

log = logging.getLogger(__name__)


class ExVideoLongSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoLongSampler",
            display_name="ExVideo Long Sampler",
            description="Makes a video of any length from a picture: segment after segment, each going on from the "
            "end of the one before, or as a whole in overlapping windows. A long run can be kept and gone on with.",
            search_aliases=["exvideo", "long video", "endless video", "loop", "extend video", "context windows"],
            inputs=[
                io.Model.Input("model", tooltip="SVD with ExVideo applied."),
                io.ClipVision.Input("clip_vision", tooltip="SVD's image encoder."),
                io.Vae.Input("vae", tooltip="SVD's autoencoder."),
                io.Image.Input("init_image", tooltip="The picture to start from; of a batch, the first."),
                io.Int.Input(
                    "total_frames", default=384, min=1, max=MAX_FRAMES, tooltip="Length of the video in frames."
                ),
                io.Int.Input(
                    "segment_frames",
                    default=128,
                    min=1,
                    max=MAX_FRAMES,
                    tooltip="Frames sampled at once, at most what the extension was trained for (128).",
                ),
                io.Int.Input(
                    "overlap",
                    default=16,
                    min=0,
                    max=MAX_FRAMES,
                    tooltip="Frames that neighbouring segments or windows share.",
                ),
                width_input(),
                height_input(),
                motion_input(),
                speed_input(),
                augmentation_input(),
                seed_input("the noise the video is made from"),
                steps_input(),
                min_cfg_input(),
                max_cfg_input(),
                normalize_input(),
                contrast_input(),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="chain",
                    tooltip="chain goes on from the last frames, segment after segment; windows works on all frames "
                    "at once in overlapping parts.",
                ),
                io.Boolean.Input(
                    "loop", default=False, tooltip="The last frame flows into the first. In windows mode only."
                ),
                io.String.Input(
                    "checkpoint_name",
                    default="",
                    tooltip="Keeps finished segments under this name in output/exvideo/runs: queued again after a "
                    "crash or a cancel, the same settings go on there. Empty keeps nothing.",
                ),
                advanced(
                    io.Combo,
                    "token_from",
                    options=list(TOKENS),
                    default="segment",
                    # Not in the contract, so that clients who know only that may leave it out.
                    optional=True,
                    tooltip="What the image encoder looks at in a chain: the first frame of each segment, or always "
                    "the picture.",
                ),
                advanced(
                    io.Boolean,
                    "match_first",
                    default=False,
                    optional=True,
                    tooltip="Give the frames of each segment of a chain the colours of the first segment, against "
                    "drift.",
                ),
                # Nor are these two.
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How much of the noise to go through: 1 makes a video from nothing, 0.5 reworks an "
                    "init_video.",
                ),
                video_input("total_frames"),
            ],
            outputs=[
                io.Latent.Output("samples", display_name="LATENT", tooltip="The whole video, to be decoded."),
                # An output may not carry the id of an input.
                io.Float.Output("video_fps", display_name="fps", tooltip="Frames a second, to save the video with."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip_vision: Any,
        vae: Any,
        init_image: torch.Tensor,
        total_frames: int,
        segment_frames: int,
        overlap: int,
        width: int,
        height: int,
        motion_bucket_id: int,
        fps: int,
        augmentation_level: float,
        seed: int,
        steps: int,
        min_cfg: float,
        max_cfg: float,
        normalize: bool,
        contrast: float,
        mode: str,
        loop: bool,
        checkpoint_name: str,
        token_from: str = "segment",
        match_first: bool = False,
        denoise: float = 1.0,
        init_video: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        host.require_svd(model)
        shape = ClipShape.of_pixels(total_frames, height, width)
        reach = host.extension_length(model)
        _check(model, reach, mode, loop, total_frames, segment_frames, token_from, bool(checkpoint_name.strip()))
        check_video(init_video, "total_frames", total_frames)
        image = conditioning.first_image(init_image)
        if image.shape[1] < shape.height or image.shape[2] < shape.width:
            host.warn(
                f"ExVideo: the picture has {image.shape[2]}×{image.shape[1]} pixels and is enlarged to "
                f"{shape.width}×{shape.height}; a larger one gives a sharper video."
            )
        ids = {"motion_bucket_id": motion_bucket_id, "fps": fps, "augmentation_level": augmentation_level}
        sigmas = schedule.sigmas(steps, denoise)
        # Both plans refuse numbers that do not go together, before any work is done; the chain's knows more reasons.
        segments = chain_segments(total_frames, segment_frames, overlap, seed) if mode == "chain" else []
        window = window_size(total_frames, segment_frames, overlap, loop)
        job = _Job(model, clip_vision, vae, image, shape, ids, seed, sigmas, min_cfg, max_cfg)
        store = None
        if name := checkpoint_name.strip():
            settings = {
                "mode": mode, "model": host.model_identity(model),
                "encoders": host.encoder_identity(clip_vision, vae), "picture": checksum(image),
                "total_frames": total_frames, "segment_frames": segment_frames, "overlap": overlap, "loop": loop,
                "width": width, "height": height, **ids, "seed": seed, "steps": steps, "min_cfg": min_cfg,
                "max_cfg": max_cfg, "denoise": denoise,
                "init_video": None if init_video is None else checksum(init_video[:total_frames]),
            }  # fmt: skip
            if mode == "chain":
                # The contrast is what the frames that segments begin with are decoded at.
                settings |= {"token_from": token_from, "match_first": match_first, "contrast": contrast}
            store = RunStore(host.long_run_folder(name), settings, shape.latent, job.steps)
        start = first_latents(vae, init_video, shape)
        if mode == "windows":
            # A window that is the whole clip may have more frames than SVD alone knows.
            rows = reach or max(segment_frames, total_frames)
            # A step of a long clip takes minutes.
            progress = host.SamplingProgress(model, job.steps, 100)
            model = host.with_drifting_windows(model, sigmas, *window, loop, rows, progress.within)
            samples = _in_windows(job._replace(model=model), start, store, progress.after(0))
        else:
            samples = _in_a_chain(job, start, segments, contrast, token_from == "picture", match_first, store)
        return io.NodeOutput({"samples": sampling.post_process(samples, normalize, contrast)}, float(fps))


def _check(
    model: Any, reach: int | None, mode: str, loop: bool, total: int, length: int, token_from: str, kept: bool
) -> None:
    """What can be refused before any work."""
    if mode not in MODES:
        raise ExVideoError(f"There is no mode {mode}: choose {' or '.join(MODES)}.")
    if token_from not in TOKENS:
        raise ExVideoError(f"There is no token_from {token_from}: choose {' or '.join(TOKENS)}.")
    if loop and mode != "windows":
        raise ExVideoError("A loop is made in windows mode, where the last frames are sampled with the first: set it.")
    windows = mode == "windows" and (loop or total > length)
    if windows and reach is None:
        raise ExVideoError(
            "Windows need a model with an ExVideo extension, and the connected one is SVD alone: choose one in Load "
            "SVD + ExVideo, connect Apply ExVideo, or set mode to chain."
        )
    if mode == "windows" and host.has_context_windows(model):
        raise ExVideoError(
            "ComfyUI's context windows are on this model, and windows mode has its own: take theirs away, or set mode "
            "to chain."
        )
    if windows and host.has_easy_cache(model):
        raise ExVideoError(
            "EasyCache skips single passes, and would mix up the windows of the clip: connect LazyCache in its place, "
            "which skips whole steps, or set mode to chain."
        )
    if mode == "windows" and kept and host.skips_steps(model):
        raise ExVideoError(
            "EasyCache and LazyCache skip steps by those before, which a run that is gone on with no longer knows, so "
            "it would become another video: take the cache away, leave checkpoint_name empty, or set mode to chain."
        )
    frames = min(length, total)
    if reach is not None and frames > reach:
        raise ExVideoError(
            f"Segments of {frames} frames are longer than this extension reaches, {reach}: lower segment_frames."
        )


class _Job(NamedTuple):
    """What all parts of a video have in common."""

    model: Any
    clip_vision: Any
    vae: Any
    image: torch.Tensor
    shape: ClipShape
    ids: dict[str, float]
    seed: int
    sigmas: torch.Tensor
    min_cfg: float
    max_cfg: float

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def condition(self, picture: torch.Tensor, frames: int, token_of: torch.Tensor | None = None) -> tuple[Any, Any]:
        shape = self.shape._replace(frames=frames)
        return condition(self.clip_vision, self.vae, picture, shape, self.ids, self.seed, token_of)

    def sample(
        self,
        conditions: tuple[Any, Any],
        latent: dict[str, Any],
        seed: int,
        first: int,
        callback: Any,
        steps: RunStore | None = None,
    ) -> torch.Tensor:
        """As ExVideo Sampler, without what that does to the latents in the end; `first` is the part's first frame."""
        guidance = None
        if self.min_cfg != self.max_cfg:
            guidance = sampling.linear_guidance(self.min_cfg, self.max_cfg, first, self.shape.frames)
        noise = sampling.latent_noise(latent["samples"], seed)
        return host.sample_euler(
            self.model, *conditions, noise, latent, self.sigmas, self.max_cfg, guidance, seed, callback, steps
        )


def _in_windows(job: _Job, start: torch.Tensor, store: RunStore | None, callback: Any) -> torch.Tensor:
    """All frames together, by a model that works in windows."""
    conditions = job.condition(job.image, job.shape.frames)
    return job.sample(conditions, {"samples": start}, job.seed, 0, callback, store)


def _in_a_chain(
    job: _Job,
    start: torch.Tensor,
    segments: list[Segment],
    contrast: float,
    from_picture: bool,
    match_first: bool,
    store: RunStore | None,
) -> torch.Tensor:
    """Segment after segment."""
    progress = host.SamplingProgress(job.model, job.steps * len(segments))
    begun, sampled = time.monotonic(), 0

    def sample(segment: Segment, picture: torch.Tensor | None, begin: torch.Tensor) -> torch.Tensor:
        nonlocal sampled
        sampled += 1
        first = job.image if picture is None else picture
        conditions = job.condition(first, len(begin), job.image if from_picture else None)
        latent = pinned_latent(begin, range(segment.pinned), CHAIN_FADE)
        callback = progress.after(job.steps * segment.number)
        return job.sample(conditions, latent, segment.seed, segment.frames.start, callback)

    def first_frame(latents: torch.Tensor, frame: int) -> torch.Tensor:
        begin = max(frame - _NEIGHBOURS, 0)
        around = latents[begin : frame + _NEIGHBOURS + 1] * contrast
        # In as much memory as there nearly always is: segments go on from this, the same when a run is gone on with.
        decoder = host.frame_decoder(job.vae, around, len(around), most=BUDGETS["low"][1])
        frames = decode_windows(around, decoder, len(around), 0)
        return job.vae.process_output(frames)[frame - begin : frame - begin + 1]

    def told(segment: Segment, clip: torch.Tensor) -> None:
        done = segment.number + 1
        # Those that were found finished took no time.
        left = (time.monotonic() - begun) / sampled * (len(segments) - done) if sampled else None
        log.info(
            "ExVideo: segment %d of %d is done, %d of %d frames%s.",
            done, len(segments), len(clip), job.shape.frames, "" if left is None else f"; about {left:.0f} s to go",
        )  # fmt: skip

    return sample_chain(segments, start, sample, first_frame, store, match_first, told)


NODES = [ExVideoLongSampler]
