"""Clips as the model sees them, computed once: latents and image tokens on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple, Protocol

import torch

from ..files import checksum, open_tensors, remove_abandoned, save_tensors, whole_or_nothing
from ..formats import ffmpeg
from ..lock import locked
from ..types import ClipShape, ExVideoError
from .clips import CLIP, DamagedError, NoClipError, TooShortError, comes_out_pale, read_clips, reader, video_files
from .colours import knows_hdr
from .motion import motion_bucket, motion_score

_A_MOMENT = 0.2
"""Seconds until it is looked again whether another process has encoded what it was at."""

log = logging.getLogger(__name__)


class Encoder(Protocol):
    """SVD's autoencoder and image encoder.

    Attributes:
        identity: a text that differs between encoders of other weights.
    """

    identity: str

    def __call__(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From a clip [T, H, W, 3] in [0, 1]: its latents [T, 4, H/8, W/8], the token [1, 1, D] of its first frame."""
        ...


class Clip(NamedTuple):
    """One clip to learn from.

    Attributes:
        latents: [T, 4, H/8, W/8], float32, on the autoencoder's scale.
        token: of the first frame, [1, 1, D], float32.
        motion_bucket_id: 0 … 127.
        video: the name of the file that it is from.
    """

    latents: torch.Tensor
    token: torch.Tensor
    motion_bucket_id: int
    video: str


class Clips:
    """The clips of a folder of videos, read from the cache one at a time.

    Attributes:
        skipped: what could not be used, and why, one text a file.
        identity: a text that differs between clips of other videos, sizes, rates or encoders.
    """

    def __init__(self, files: list[Path], skipped: list[str]):
        self._files, self.skipped = files, skipped
        # By the names that clips had at first, so that a run of that time goes on.
        names = "\n".join(f"{file.stem}.safetensors" for file in files)
        self.identity = hashlib.sha256(names.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> Clip:
        with open_tensors(self._files[number], "Remove it, and it is made again.") as (file, _):
            latents, token = (file.get_tensor(name).float() for name in ("latents", "token"))
            texts = file.metadata()
            # The text names the video for people alone, and a clip may do without.
            return Clip(latents, token, int(texts["motion_bucket_id"]), texts.get("video", self._files[number].name))


def cache_clips(
    folder: Path,
    shape: ClipShape,
    fps: float,
    encoder: Encoder,
    cache: Path,
    on_video: Callable[[int, int], None] = lambda done, of: None,
) -> Clips:
    """Encode what is new in a folder of videos. Of several processes at it each takes what no other has begun.

    Args:
        folder: with the videos, in any depth.
        shape: of a clip; a longer video gives several.
        fps: frames a second.
        encoder: see `Encoder`.
        cache: where latents and tokens are kept, about 2 bytes for 12 of the video's pixels.
        on_video: told how many videos are done, and of how many; may raise to stop.

    Raises:
        ExVideoError: no videos, or none of them usable; says why for the first few.
    """
    videos = video_files(folder)
    remove_abandoned(cache)  # once, not with each of ten thousands of files
    for older in cache.glob("*.safetensors"):  # an earlier version's, which every list of models showed
        with suppress(OSError):
            older.replace(older.with_suffix(CLIP))
    files: dict[Path, list[Path]] = {}
    skipped: dict[Path, str] = {}
    left, waits = videos, False
    while left:
        elsewhere = []
        for video in left:
            on_video(len(files), len(videos))
            encoded = _encoded(video, shape, fps, encoder, cache)
            if encoded is None:
                elsewhere.append(video)
                continue
            files[video], problem = encoded
            if problem:
                skipped[video] = f"{_name(video)}: {problem}"
                log.warning("ExVideo cannot learn from %s.", skipped[video])
        if elsewhere == left:
            if not waits:
                log.info("ExVideo waits for another process, which encodes %s.", _name(left[0]))
            waits = True
            sleep(_A_MOMENT)
        left = elsewhere
    on_video(len(videos), len(videos))
    told = [skipped[video] for video in videos if video in skipped]
    if not any(files.values()):
        more = f" (and {len(told) - 3} more)" if len(told) > 3 else ""
        raise ExVideoError(f"None of the {len(videos)} files in {folder} can be used. {'; '.join(told[:3])}{more}.")
    return Clips([file for video in videos for file in files[video]], told)


def _encoded(video: Path, shape: ClipShape, fps: float, encoder: Encoder, cache: Path) -> tuple[list[Path], str] | None:
    """The clips of a video, or why there are none; None while another process encodes it."""
    try:
        stat = video.stat()
    except OSError:  # removed since the folder was looked through, which may be hours
        return [], "it is no longer there"
    named = [str(video.resolve()), stat.st_size, stat.st_mtime_ns, *shape, float(fps), encoder.identity]
    key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:24]
    # Written last, so that a video whose encoding was interrupted is gone on with.
    index = cache / f"{key}.json"
    if not _is_whole(index):
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(cache, "Another process encodes this video.", f"{key}.lock"))
            except ExVideoError:
                return None
            if not _is_whole(index):  # by another process, since it was looked at
                _encode(video, shape, fps, encoder, index)
    clips = _clips(index)
    return clips, "" if clips else json.loads(index.read_text(encoding="utf-8"))["problem"]


def _clips(index: Path) -> list[Path]:
    """The files of a video's clips."""
    names = json.loads(index.read_text(encoding="utf-8"))["clips"]
    return [(index.parent / name).with_suffix(CLIP) for name in names]


def _is_whole(index: Path) -> bool:
    """Whether a video has been encoded, and all of its clips are there in full, or is known to have none."""
    try:
        text = json.loads(index.read_text(encoding="utf-8"))
        if clips := _clips(index):
            if text.get("pale") and knows_hdr(ffmpeg("read")):
                return False
            return all(_texts(path) is not None for path in clips)
        # What could not be read may be another time: that is no fact of the video. Nor is damage, to another ffmpeg.
        known = text["too_short"] or text.get("damaged_to") == reader()
        return bool(known and text["problem"])
    except (ExVideoError, OSError, ValueError, KeyError, TypeError):  # not yet, or damaged
        return False


def _texts(clip: Path) -> Mapping[str, str] | None:
    """What is written beside the numbers of a clip; None unless all of it is there."""
    # Opening it reads where the tensors lie, and whether the file ends where they do.
    with suppress(ExVideoError), open_tensors(clip, "") as (file, _):
        return file.metadata() or {}
    return None


def _name(video: Path) -> str:
    """The name of a video as a text; on Linux it may hold bytes that are none."""
    return video.name.encode(errors="replace").decode()


def _encode(video: Path, shape: ClipShape, fps: float, encoder: Encoder, index: Path) -> None:
    names: list[str] = []
    pale = comes_out_pale(video)
    text: dict[str, Any] = {"video": _name(video), "problem": "", "too_short": False, "pale": pale}
    try:
        for frames in read_clips(video, shape, fps):
            # Other clips, for a run that learns from them, than those that another ffmpeg makes of the same video.
            names.append(f"{index.stem}_{len(names):04}{'_pale' if pale else ''}{CLIP}")
            path, seen = index.with_name(names[-1]), checksum(frames)
            if (_texts(path) or {}).get("frames") == seen:  # since the encoding was interrupted
                continue
            pixels = frames.float() / 255
            latents, token = encoder(pixels)
            if not (latents.isfinite().all() and token.isfinite().all()):
                raise NoClipError("its latents or its image token are no finite numbers")
            bucket = str(motion_bucket(motion_score(pixels)))
            # In half precision, of which latents need no more.
            tensors = {"latents": latents.half(), "token": token.half()}
            texts = {"motion_bucket_id": bucket, "video": text["video"], "frames": seen}
            save_tensors(path, tensors, texts, tidy=False)
    except NoClipError as error:
        text |= {"problem": str(error), "too_short": isinstance(error, TooShortError)}
        if isinstance(error, DamagedError):
            text["damaged_to"] = reader()
        while names:  # of a video that turned out to be damaged after them
            with suppress(OSError):
                index.with_name(names.pop()).unlink()
    text["clips"] = names
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_nothing(index, tidy=False) as partial:
            partial.write_text(json.dumps(text), encoding="utf-8")
    except OSError as error:
        raise ExVideoError(
            f"Encoded clips cannot be kept in {index.parent} ({error}): make it writable, or free some space."
        ) from error
