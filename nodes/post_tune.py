"""Post-tune: an extension, trained further on a folder of videos."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..exvideo_core import host
from ..exvideo_core.budget import BUDGETS
from ..exvideo_core.extension import Extension
from ..exvideo_core.post_tuning.clips import video_files
from ..exvideo_core.post_tuning.curve import loss_curve
from ..exvideo_core.post_tuning.recipe import Recipe
from ..exvideo_core.post_tuning.training import Progress
from ..exvideo_core.types import ExVideoError
from .schema import MAX_FRAMES, MAX_SEED, ExVideo, advanced, schema


class ExVideoPostTune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoPostTune",
            display_name="Post-Tune ExVideo",
            description="Trains an extension on a folder of videos, as the ExVideo authors do: only the 16 temporal "
            "blocks learn. A cancelled run keeps what it learned, and goes on when it is queued again.",
            search_aliases=["exvideo", "train svd", "post-tuning", "finetune video model"],
            is_output_node=True,  # for it keeps its extension by itself
            inputs=[
                io.Model.Input("model", tooltip="Stable Video Diffusion, without an extension. It is left as it is."),
                ExVideo.Input("exvideo", tooltip="Where training starts: a new extension, or a trained one."),
                io.ClipVision.Input("clip_vision", tooltip="SVD's image encoder."),
                io.Vae.Input("vae", tooltip="SVD's autoencoder."),
                io.String.Input(
                    "videos",
                    default="videos",
                    tooltip="The folder with the videos to learn from: any size, speed and format. A folder in "
                    "ComfyUI's input folder, or a full path.",
                ),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=10_000_000,
                    tooltip="Clips to learn from, one a step, in all. A finished run goes on when there are more.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-5,
                    min=1e-8,
                    max=0.1,
                    step=1e-8,
                    round=False,
                    tooltip="How far a step goes. The authors take 0.00001.",
                ),
                io.Int.Input("width", default=512, min=64, max=8192, step=8, tooltip="Of the clips, in pixels."),
                io.Int.Input("height", default=512, min=64, max=8192, step=8, tooltip="Of the clips, in pixels."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    # Or the page would draw another after each run, and a cancelled one would begin anew, over itself.
                    control_after_generate=False,
                    tooltip="Seed of the order of the clips and of all noise. A run goes on with the same seed only.",
                ),
                io.Int.Input(
                    "num_frames",
                    default=0,
                    min=0,
                    max=MAX_FRAMES,
                    # Not in the contract, so that clients who know only that may leave it out.
                    optional=True,
                    tooltip="Length of the clips in frames; 0 is as many as the extension reaches. More make the "
                    "extension grow.",
                ),
                io.Float.Input(
                    "fps",
                    default=30.0,
                    min=1.0,
                    max=240.0,
                    optional=True,
                    tooltip="Frames a second of the clips; videos of other speeds lose or repeat frames.",
                ),
                io.String.Input(
                    "run_name",
                    default="post_tuning",
                    optional=True,
                    tooltip="Folder in output/exvideo that keeps the run. The same name and settings go on with it.",
                ),
                advanced(
                    io.Combo,
                    "memory",
                    options=list(BUDGETS),
                    default="auto",
                    optional=True,
                    tooltip="auto and fast keep all that gradients need where it fits; the others compute it again.",
                ),
                advanced(
                    io.Int,
                    "save_every",
                    default=500,
                    min=1,
                    max=1_000_000,
                    optional=True,
                    tooltip="Steps between checkpoints.",
                ),
            ],
            outputs=[
                ExVideo.Output("extended", display_name="EXVIDEO", tooltip="The trained extension."),
                io.LossMap.Output("losses", display_name="losses", tooltip="Of each step; for Plot Loss Graph."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        exvideo: Extension,
        clip_vision: Any,
        vae: Any,
        videos: str,
        steps: int,
        learning_rate: float,
        width: int,
        height: int,
        seed: int,
        num_frames: int = 0,
        fps: float = 30.0,
        run_name: str = "post_tuning",
        memory: str = "auto",
        save_every: int = 500,
    ) -> io.NodeOutput:
        if not videos.strip():
            raise ExVideoError("Post-Tune ExVideo needs a folder of videos: give its path at `videos`.")
        folder, subfolder = host.run_folder(run_name)
        update = host.progress()

        def on_step(progress: Progress) -> None:
            # A picture for each percent: enough to watch.
            shown = progress.step % max(steps // 100, 1) == 0
            update(progress.step, steps, loss_curve(progress.losses) if shown else None)

        extension, losses = host.post_tune(
            model,
            exvideo,
            clip_vision,
            vae,
            host.input_folder(videos.strip()),
            (height, width),
            Recipe(steps, learning_rate, seed, fps, save_every=save_every),
            folder,
            num_frames,
            memory,
            on_video=update,
            on_step=on_step,
        )
        loss_map = {"loss": [torch.tensor(loss) for loss in losses]}
        curve = ui.SavedResult(host.CURVE, subfolder, io.FolderType.output)
        return io.NodeOutput(extension, loss_map, ui=ui.SavedImages([curve]))

    @classmethod
    def fingerprint_inputs(cls, videos: str | None, **_: Any) -> str:
        """What the host compares to see whether to run again: the files, too, not only the folder's name."""
        # From another node it is not known yet: then that node's running again is what counts.
        if not videos or not videos.strip():
            return ""
        # What is wrong with the folder, or has just left it, is told when the node runs.
        with suppress(ExVideoError, OSError):
            stats = [(str(path), path.stat()) for path in video_files(host.input_folder(videos.strip()))]
            names = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
            # Not the names: the host stores this in the graph, and with it in files that are given away.
            return hashlib.sha256(json.dumps(names).encode()).hexdigest()
        return ""


NODES = [ExVideoPostTune]
