"""How the shipped workflows are laid out on the page: their note, and their nodes in groups from left to right."""

from __future__ import annotations

from typing import NamedTuple

SVD = "https://huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt/resolve/main/svd_xt.safetensors"
EXVIDEO = "https://huggingface.co/ECNU-CILab/ExVideo-SVD-128f-v1/resolve/main/model.fp16.safetensors"
SDXL = "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors"
MODELS = {
    "svd_xt.safetensors": (SVD, "checkpoints"),
    "model.fp16.safetensors": (EXVIDEO, "exvideo"),
    "sd_xl_base_1.0.safetensors": (SDXL, "checkpoints"),
}
"""What the page offers to download, and the folder in models/ where it belongs."""

_SVD = (
    "[svd_xt.safetensors](https://huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt) (9.56 GB; sign in "
    "there and accept its licence first) in `models/checkpoints`"
)
_FILES = (
    f"\n\nIt needs {_SVD}, and [model.fp16.safetensors](https://huggingface.co/ECNU-CILab/ExVideo-SVD-128f-v1) "
    "(1.67 GB) in `models/exvideo`."
)


class Sheet(NamedTuple):
    """A workflow on the page.

    Attributes:
        note: what it does, in Markdown.
        groups: title and the nodes, by their ids in the API form, from top to bottom.
    """

    note: str
    groups: list[tuple[str, list[str]]]


SHEETS = {
    "image_to_video": Sheet(
        "Turns one picture into a video of 128 frames at 30 frames a second, with Stable Video Diffusion (SVD) "
        f"extended by ExVideo.{_FILES}\n\nChoose your picture in Load Image and both files in Load SVD + ExVideo, "
        "then run; the MP4 appears in the last node and in `output/video`.",
        [
            ("Load", ["2"]),
            ("Picture", ["1"]),
            ("Condition", ["3"]),
            ("Sample", ["4"]),
            ("Decode", ["5"]),
            ("Save", ["6"]),
        ],
    ),
    "long_video": Sheet(
        "Turns one picture into a video of any length: segments of 128 frames, each going on from the last frames of "
        f"the one before. Memory does not grow with length.{_FILES}\n\nSet `total_frames`. What is finished is kept "
        "under `checkpoint_name`: after a crash or a cancel, queue it again and it goes on. For another picture or "
        "seed choose another name, or none. From the second segment on, what moves drifts from where it should be.",
        [("Load", ["2"]), ("Picture", ["1"]), ("Sample", ["3"]), ("Render", ["4"])],
    ),
    "perfect_loop": Sheet(
        "Makes a video whose last frame flows into its first. All frames are sampled together, in overlapping windows "
        f"that go round.{_FILES}\n\n`loop` is set twice: in the sampler, and in the rendering (among its advanced "
        "inputs), so that decoding and interpolation close the circle, too. Expect a calm loop: on our small model "
        "this way loses most of the motion.",
        [("Load", ["2"]), ("Picture", ["1"]), ("Sample", ["3"]), ("Render", ["4"])],
    ),
    "first_and_last": Sheet(
        "Makes a video of 128 frames from one picture to another: the first and the last frame are pinned, and the "
        f"video is led to the last over `last_fade` frames (an advanced input).{_FILES}\n\nChoose two pictures of the "
        "same scene; the less they differ, the more of the way is motion and the less is fading. `normalize` is off, "
        "so that the light may change on the way.",
        [
            ("Load", ["2"]),
            ("Pictures", ["1", "7"]),
            ("Condition", ["3"]),
            ("Sample", ["4"]),
            ("Decode", ["5"]),
            ("Save", ["6"]),
        ],
    ),
    "two_pass_upscale": Sheet(
        "The authors' way to 1024×1024: a video at 512×512 first, then its frames, enlarged, are noised half-way and "
        f"sampled again with the larger size.{_FILES}\n\nBeyond 128 frames, take ExVideo Long Sampler for both passes: "
        "it has the same inputs `init_video` and `denoise`.",
        [
            ("Load", ["2"]),
            ("Picture", ["1"]),
            ("First pass", ["3"]),
            ("Sample", ["4"]),
            ("Decode", ["5"]),
            ("Second pass", ["6"]),
            ("Sample again", ["7"]),
            ("Render", ["8"]),
        ],
    ),
    "text_to_long_video": Sheet(
        "Paints a picture from words with any checkpoint that makes pictures, then turns it into a long "
        f"video.{_FILES}\n\nChoose your own checkpoint in Load Checkpoint, with the size and settings that suit it.",
        [
            ("Load", ["7"]),
            ("Load an image model", ["1"]),
            ("Describe", ["2", "3", "4"]),
            ("Paint", ["5"]),
            ("See", ["6"]),
            ("Sample", ["8"]),
            ("Render", ["9"]),
        ],
    ),
    "low_memory": Sheet(
        "128 frames at 512×512, meant for a card with 8 GB: the same video as Image to Video makes, in less "
        f"memory.{_FILES}\n\n`memory` (among the advanced inputs) is balanced: the model works in chunks of 512 MiB. "
        "If that runs out, low takes less, and is slower. Rendering a few frames at a time keeps the video out of "
        "memory, and the latents are saved first, so that a full disk costs no sampling.",
        [("Load", ["2"]), ("Picture", ["1"]), ("Condition", ["3"]), ("Sample", ["4"]), ("Render", ["5"])],
    ),
    "interpolate_video": Sheet(
        "Makes any video smoother: new frames between its own, and as many times the frames a second. Its sound "
        "stays. Nothing needs to be downloaded.\n\nChoose your video in Load Video. To make it slower instead, "
        "take the links from `fps` and `audio` of Save ExVideo, and type the video's own fps there.",
        [("Load", ["1", "2"]), ("Interpolate", ["3"]), ("Save", ["4"])],
    ),
    "post_tuning": Sheet(
        "Trains an extension of your own on a folder of videos, as the ExVideo authors did: only the temporal blocks "
        "learn.\n\nIt needs "
        f"{_SVD}, and your videos in `input/videos`. A cancelled run keeps what it learned and goes on when "
        "queued again; with more `steps` a finished one goes on, too.",
        [("Load", ["1"]), ("Extend", ["2"]), ("Train", ["3"]), ("Save", ["4"])],
    ),
}
