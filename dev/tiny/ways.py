"""Ways to make a video longer than the base can, with the pack's own nodes: what post-tuning is compared with."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from dev.inside import become_host, core, node_runner
from dev.tiny.base import FRAMES
from dev.tiny.data import FPS, LONG
from dev.tiny.scenes import Scene, render
from dev.tiny.trained import write_trained_model

SAMPLING: dict[str, Any] = {"steps": 20, "min_cfg": 1.5, "max_cfg": 1.5, "normalize": False, "contrast": 1.0}
OVERLAP = 8
"""Frames that the host's context windows share."""


class Studio:
    """The trained tiny model, and the ways to make a video of a scene with it.

    Args:
        models: where the model is put together.
        extension: a file to use in the place of the trained extension.
        window: frames that are decoded at once. Many take half the time of few, of which each frame is in two.
        steps: of sampling.
    """

    def __init__(self, models: Path, extension: Path | None = None, window: int = 8, steps: int = SAMPLING["steps"]):
        become_host("--cpu")
        write_trained_model(models)
        tiny = core("tiny")
        self._run = node_runner()
        self._base, self._clip_vision, self._vae = core("host").load_svd(models / tiny.CHECKPOINT)
        trained = core("extension").read_extension(extension or models / tiny.EXTENSION)
        (self._extended,) = self._run("ExVideoApply", model=self._base, exvideo=trained)
        self._motion = core("post_tuning.motion")
        self._window, self._sampling = window, {**SAMPLING, "steps": steps}

    def base(self, what: Scene, side: int, frames: int = FRAMES) -> torch.Tensor:
        """By the base alone."""
        return self._video(self._base, what, side, frames)

    def base_too_long(self, what: Scene, side: int) -> torch.Tensor:
        """By the base alone, asked for more frames than it knows."""
        return self.base(what, side, LONG)

    def untrained(self, what: Scene, side: int) -> torch.Tensor:
        """By a new extension, before any training."""
        (new,) = self._run("ExVideoInit", model=self._base, num_frames=LONG)
        (model,) = self._run("ExVideoApply", model=self._base, exvideo=new)
        return self._video(model, what, side, LONG)

    def windows(self, what: Scene, side: int) -> torch.Tensor:
        """By the host's context windows over the base.

        An untrained extension of the base's own length changes nothing, but lets the windows run: over plain SVD the
        oldest host's crash.
        """
        (new,) = self._run("ExVideoInit", model=self._base, num_frames=FRAMES)
        (model,) = self._run("ExVideoApply", model=self._base, exvideo=new)
        return self._video(_in_host_windows(model, FRAMES, OVERLAP), what, side, LONG)

    def windows_extended(self, what: Scene, side: int, frames: int) -> torch.Tensor:
        """By the host's context windows over the post-tuned extension."""
        return self._video(_in_host_windows(self._extended, LONG, 2 * OVERLAP), what, side, frames)

    def long(self, what: Scene, side: int, frames: int, **settings: Any) -> torch.Tensor:
        """By ExVideo Long Sampler over the post-tuned extension, with some of its inputs set."""
        samples, _ = self._run(
            "ExVideoLongSampler", model=self._extended, clip_vision=self._clip_vision, vae=self._vae,
            init_image=render(what, 1, side), total_frames=frames, width=side, height=side,
            motion_bucket_id=self._bucket(what, side), fps=FPS, augmentation_level=0.0, **self._sampling, **settings,
        )  # fmt: skip
        (video,) = self._run("ExVideoDecode", samples=samples, vae=self._vae, window=self._window)
        return video

    def chained(self, what: Scene, side: int, frames: int = LONG) -> torch.Tensor:
        """By the base again and again, each time from the last frame."""
        video = self.base(what, side)
        while len(video) < frames:
            video = torch.cat([video, self._video(self._base, what, side, FRAMES, video[-1:])[1:]])
        return video[:frames]

    def extended(self, what: Scene, side: int, frames: int = LONG) -> torch.Tensor:
        """By the post-tuned extension."""
        return self._video(self._extended, what, side, frames)

    def to_last(self, what: Scene, side: int, last_fade: int) -> torch.Tensor:
        """By the post-tuned extension, given the last frame, too."""
        last = render(what, LONG, side, first=LONG - 1)
        return self._video(self._extended, what, side, LONG, last_image=last, last_fade=last_fade)

    def features(self, video: torch.Tensor) -> torch.Tensor:
        """What the image encoder makes of each frame, [T, D]."""
        host, conditioning = core("host"), core("conditioning")
        tokens = [
            host.encode_clip(self._clip_vision, lambda *like, frame=frame: conditioning.clip_pixels(frame, *like))
            for frame in torch.split(video, 1)
        ]
        return torch.cat(tokens)[:, 0]

    def _video(
        self, model: Any, what: Scene, side: int, frames: int, picture: torch.Tensor | None = None, **more: Any
    ) -> torch.Tensor:
        positive, negative, latent, _ = self._run(
            "ExVideoConditioning",
            clip_vision=self._clip_vision,
            vae=self._vae,
            init_image=render(what, 1, side) if picture is None else picture,
            width=side,
            height=side,
            num_frames=frames,
            motion_bucket_id=self._bucket(what, side),
            fps=FPS,
            augmentation_level=0.0,
            **more,
        )
        (samples,) = self._run(
            "ExVideoSampler", model=model, positive=positive, negative=negative, latent=latent, **self._sampling
        )
        (video,) = self._run("ExVideoDecode", samples=samples, vae=self._vae, window=self._window)
        return video

    def _bucket(self, what: Scene, side: int) -> int:
        """How much moves: told to all ways alike, as a person would who has seen such videos."""
        return int(self._motion.motion_bucket(self._motion.motion_score(render(what, LONG, side))))


def _in_host_windows(model: Any, length: int, overlap: int) -> Any:
    """A model on which the host's samplers work in its context windows."""
    node = importlib.import_module("comfy_extras.nodes_context_windows").ContextWindowsManualNode
    defaults = {i.id: getattr(i, "default", None) for i in node.define_schema().inputs if i.id != "model"}
    defaults |= {"context_length": length, "context_overlap": overlap}
    defaults["context_schedule"] = defaults["context_schedule"] or "standard_static"
    (windowed,) = node.execute(model, **defaults).args
    return windowed
