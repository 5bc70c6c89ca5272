"""Condition: a picture into what guides the sampling, and the latent it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io

from ..exvideo_core import conditioning, host
from ..exvideo_core.pinning import ENDS_FADE, with_ends
from ..exvideo_core.types import ClipShape, ExVideoError
from .schema import MAX_FRAMES, advanced, schema, seed_input


class ExVideoConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoConditioning",
            display_name="ExVideo Image to Video",
            description="Prepares a picture as the first frame of a video: what guides the sampler, and an empty clip.",
            search_aliases=["exvideo", "svd img2vid conditioning", "image to video", "animate picture"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="SVD's image encoder."),
                io.Vae.Input("vae", tooltip="SVD's autoencoder."),
                io.Image.Input("init_image", tooltip="The picture to start from; of a batch, the first."),
                width_input(),
                height_input(),
                io.Int.Input(
                    "num_frames",
                    default=128,
                    min=1,
                    max=MAX_FRAMES,
                    tooltip="Length of the video in frames, at most what the extension was trained for (128).",
                ),
                motion_input(),
                speed_input(),
                augmentation_input(),
                seed_input("the noise added to the picture"),
                video_input("num_frames"),
                io.Image.Input(
                    "last_image",
                    # Like the next not in the contract, so that clients who know only that may leave it out.
                    optional=True,
                    tooltip="A picture to end with: the first and the last frame are pinned, and the video is led to "
                    "the last.",
                ),
                advanced(
                    io.Int,
                    "last_fade",
                    default=ENDS_FADE,
                    min=0,
                    max=MAX_FRAMES,
                    optional=True,
                    tooltip="Frames over which the video is led to last_image. 0 only pins it, and the video jumps.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive", display_name="positive", tooltip="The picture and its motion, for the sampler."
                ),
                io.Conditioning.Output("negative", display_name="negative", tooltip="The same without the picture."),
                io.Latent.Output(
                    "latent", display_name="latent", tooltip="The clip to sample: empty, or of init_video."
                ),
                # An output may not carry the id of an input.
                io.Float.Output("video_fps", display_name="fps", tooltip="Frames a second, to save the video with."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip_vision: Any,
        vae: Any,
        init_image: torch.Tensor,
        width: int,
        height: int,
        num_frames: int,
        motion_bucket_id: int,
        fps: int,
        augmentation_level: float,
        seed: int,
        init_video: torch.Tensor | None = None,
        last_image: torch.Tensor | None = None,
        last_fade: int = ENDS_FADE,
    ) -> io.NodeOutput:
        shape = ClipShape.of_pixels(num_frames, height, width)
        ids = {"motion_bucket_id": motion_bucket_id, "fps": fps, "augmentation_level": augmentation_level}
        check_video(init_video, "num_frames", num_frames)
        image = conditioning.first_image(init_image)
        latent = {"samples": first_latents(vae, init_video, shape)}
        if last_image is not None:
            ends = [conditioning.fit(each, shape) for each in (image, conditioning.first_image(last_image))]
            latent = with_ends(latent["samples"], host.encode_frames(vae, torch.cat(ends)), last_fade)
        positive, negative = condition(clip_vision, vae, image, shape, ids, seed)
        return io.NodeOutput(positive, negative, latent, float(fps))


def width_input() -> Any:
    return io.Int.Input(
        "width",
        default=512,
        min=64,
        max=8192,
        step=8,
        tooltip="Of the video, in pixels. The picture is cropped at the centre to these proportions.",
    )


def height_input() -> Any:
    return io.Int.Input("height", default=512, min=64, max=8192, step=8, tooltip="Of the video, in pixels.")


def motion_input() -> Any:
    return io.Int.Input(
        "motion_bucket_id",
        default=127,
        min=0,
        max=1023,
        tooltip="How much moves: higher is more. SVD was trained on 0 to 255.",
    )


def speed_input() -> Any:
    return io.Int.Input(
        "fps",
        default=30,
        min=1,
        # As many as a video can be saved with.
        max=1000,
        tooltip="Frames a second that the motion is made for. The release was trained at 30.",
    )


def augmentation_input() -> Any:
    return advanced(
        io.Float,
        "augmentation_level",
        default=0.02,
        min=0.0,
        max=10.0,
        step=0.01,
        tooltip="Noise added to the picture, as deviation of pixels in −1 … 1. More frees the motion from the picture.",
    )


def video_input(length: str) -> Any:
    return io.Image.Input(
        "init_video",
        optional=True,
        tooltip="A video to start from instead of an empty clip; sample it with a denoise below 1. "
        f"Needs at least {length} frames.",
    )


def check_video(video: torch.Tensor | None, name: str, frames: int) -> None:
    """Raise ExVideoError if a video has fewer frames than the input of that name says."""
    if video is not None and len(video) < frames:
        raise ExVideoError(
            f"init_video has {len(video)} frames, but the video is to have {frames}: "
            f"lower {name}, or connect a longer video."
        )


def first_latents(vae: Any, video: torch.Tensor | None, shape: ClipShape) -> torch.Tensor:
    """What sampling starts from, [T, 4, H/8, W/8]: a video's latents, or zeros for noise alone."""
    if video is None:
        return torch.zeros(shape.latent)
    # Frame by frame, for all of a long video would not fit into memory once more.
    return host.encode_frames(
        vae, video[: shape.frames], lambda frame: conditioning.fit(conditioning.rgb(frame), shape)
    )


def condition(
    clip_vision: Any,
    vae: Any,
    image: torch.Tensor,
    shape: ClipShape,
    ids: Mapping[str, float],
    seed: int,
    token_of: torch.Tensor | None = None,
) -> tuple[Any, Any]:
    """What guides the sampling of a clip: positive and negative CONDITIONING.

    Args:
        image: the clip's first frame, [1, H, W, 3].
        shape: of the clip.
        ids: motion_bucket_id, fps and augmentation_level.
        seed: of the noise that is added to the image.
        token_of: what the image encoder looks at, [1, H, W, 3]; the image itself by default.

    Returns:
        Each with the image token [1, 1, D] and the latent of the noised image, [1, 4, H/8, W/8]; the negative one's
        are zeros.

    Raises:
        ExVideoError: the autoencoder is another model's.
    """
    token = host.encode_clip(clip_vision, partial(conditioning.clip_pixels, image if token_of is None else token_of))
    first_frame = conditioning.augment(conditioning.fit(image, shape), ids["augmentation_level"], seed)
    latent = host.encode(vae, first_frame)
    positive = [[token, {**ids, "concat_latent_image": latent}]]
    negative = [[torch.zeros_like(token), {**ids, "concat_latent_image": torch.zeros_like(latent)}]]
    return positive, negative


NODES = [ExVideoConditioning]
