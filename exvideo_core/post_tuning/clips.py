"""Clips out of ordinary video files: any size, rate and codec that ffmpeg reads."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import dropwhile
from pathlib import Path

import torch

from ..formats import does_not_run, ffmpeg
from ..types import ClipShape, ExVideoError
from .colours import colour_filters

CLIP = ".clip"
"""The end of an encoded clip's name: a .safetensors file, under a name that no list of models shows."""
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_TEXTS = {
    # These ffmpeg would draw, as a terminal that shows a text.
    ".ans", ".art", ".asc", ".diz", ".ice", ".idf", ".nfo", ".txt", ".vt",
    ".ass", ".csv", ".json", ".md", ".srt", ".vtt",
    # These would be the videos that they list once more.
    ".ffconcat", ".m3u", ".m3u8", ".pls",
}  # fmt: skip
_OURS = {CLIP, ".safetensors", ".state"}
"""What post-tuning keeps, also among the videos."""
_DAMAGE = re.compile(
    "corrupt decoded frame|error submitting packet|decoding error|error while decoding|concealing|undecodable nalu"
    "|crc mismatch|ended prematurely|partial file"
    # Files of transport streams that were put end to end have such packets, too, and decode well.
    "|^(?!.*mpegts).*packet corrupt",
    re.IGNORECASE,
)
"""What ffmpeg says where pictures are missing or broken. It ends without an error then, and says other things of videos
that are whole, also as errors."""
_CUT_IN = re.compile(
    "PPS id out of range|undecodable NALU|Last message repeated|Could not find ref with POC"
    "|Error constructing the frame RPS",
    re.IGNORECASE,
)
"""What it says before the first picture of a recording in HEVC that begins in the middle of what belongs together: it
leaves those pictures out."""
_PROGRESSIVE = "bwdif=mode=send_frame:deint=interlaced"
"""Makes one frame of two half pictures, a row apart, as tape, DVD and 1080i have them; whole ones stay as they are."""
_SPEAKER = re.compile(r"^(\[[^]]*\] )+")
"""Which part of ffmpeg says a line, and where in memory it lies."""


class NoClipError(ExVideoError):
    """What is wrong with a video file that gives no clip."""


class TooShortError(NoClipError):
    """A video that can be read, and is too short for a clip: that stays so as long as the file does."""


class DamagedError(NoClipError):
    """A video that is damaged, by what ffmpeg says: that stays so as long as the file and the ffmpeg do."""


def video_files(folder: Path) -> list[Path]:
    """What may be videos in a folder and the folders in it, also in those that links lead to, in the order of their
    names.

    Raises:
        ExVideoError: no such folder, or nothing in it but pictures, texts and what post-tuning keeps.
    """
    if not os.path.isdir(folder):  # False, too, of what no folder can be called
        raise ExVideoError(f"There is no folder {folder}: give the folder that has the videos to learn from.")
    files = sorted(_files_below(folder))
    videos = [path for path in files if path.suffix.lower() not in _PICTURES | _TEXTS | _OURS]
    if not videos:
        found = "has only pictures and other files" if files else "is empty"
        raise ExVideoError(f"There are no videos in {folder}, which {found}: put video files there, such as .mp4.")
    return videos


def _files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and the folders in it but for hidden ones, each folder once, by its own name before that of
    a link."""
    # A link back to where the folder is would bring all that lies around it.
    known = {os.path.realpath(parent) for parent in Path(os.path.realpath(folder)).parents}
    folders, links = [folder], list[Path]()
    while folders or links:
        place = folders.pop() if folders else links.pop(0)
        if (real := os.path.realpath(place)) in known:
            continue
        known.add(real)
        below: list[Path] = []
        with suppress(OSError):  # one that may not be looked into
            below = sorted(place.iterdir())
        for path in below:
            if path.name.startswith("."):  # hidden, as a wastebasket on a disk is
                continue
            if os.path.isdir(path):
                (links if path.is_symlink() else folders).append(path)
            elif os.path.isfile(path):
                yield path


def read_clips(path: Path, shape: ClipShape, fps: float) -> Iterator[torch.Tensor]:
    """The clips of a video file, one after the other, without the rest at its end that is too short.

    The video is brought to the wanted rate, resized, with square pixels, until it covers the wanted size, and cropped
    to its centre.

    Args:
        path: the file.
        shape: of a clip.
        fps: frames a second, which repeats or leaves out frames.

    Yields:
        [T, H, W, 3], uint8.

    Raises:
        TooShortError: a video with fewer frames than a clip.
        NoClipError: not a video.
        DamagedError: a damaged one. Where the damage is later, after the clips before it, which may show it, too:
            frames can be made of those after them.
        ExVideoError: there is no ffmpeg, or it does not run.
    """
    frames, height, width = shape
    size, clips, got = frames * height * width * 3, 0, 0
    with tempfile.TemporaryFile() as log:
        try:
            decoder = subprocess.Popen(_command(path, shape, fps), stdout=subprocess.PIPE, stderr=log)
        except (OSError, subprocess.SubprocessError) as error:
            raise does_not_run("read", error) from error
        assert decoder.stdout is not None
        try:
            while True:
                clip = bytearray(size)
                got = decoder.stdout.readinto(clip)  # type: ignore[attr-defined]
                if got < size:
                    break
                clips += 1
                yield torch.frombuffer(clip, dtype=torch.uint8).view(frames, height, width, 3)
            failed = decoder.wait() != 0
        finally:
            decoder.kill()
            decoder.wait()
            decoder.stdout.close()
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines()
    if any("matches no streams" in line for line in said):
        raise NoClipError("there is no video in it, as in a file of sound alone")
    damage = _damage(said)
    if failed or damage or not (clips or got):
        what = "it is damaged" if damage else "it cannot be read as a video"
        words = _SPEAKER.sub("", damage or (said or ["nothing found"])[-1])
        raise (DamagedError if damage else NoClipError)(f"{what} (ffmpeg: {words})")
    if not clips:
        raise TooShortError(f"it has {got * frames // size} frames at {fps:g} a second, and a clip needs {frames}")


def _damage(said: list[str]) -> str | None:
    """The line of what ffmpeg said that tells of damage, if one does."""
    if said and "PPS id out of range" in said[0]:
        said = list(dropwhile(_CUT_IN.search, said))
    return next((line for line in said if _DAMAGE.search(line)), None)


def _command(path: Path, shape: ClipShape, fps: float) -> list[str]:
    """What writes the pictures of `read_clips` to standard output, and what is wrong with them to standard error."""
    _, height, width = shape
    program = ffmpeg("read")
    # Of DV, say, pixels are `sar` times as wide as high; ffmpeg counts what is not said as 1.
    cover = f"scale='max({width},round({height}*iw*sar/ih))':'max({height},round({width}*ih/(iw*sar)))':flags=bicubic"
    # From the root on, or a name with a colon would be taken for an address.
    command = [program, "-nostdin", "-v", "warning", "-i", str(path.absolute())]
    command += ["-map", "0:V:0"]  # V: but no cover
    # Otherwise copies of the first picture fill the time before it, where the sound begins earlier.
    colours = colour_filters(program, path)
    filters = [colours.first, _PROGRESSIVE, f"fps={fps}", cover, f"crop={width}:{height}", colours.last]
    command += [_sync(program), "passthrough", "-vf", ",".join(filter(None, filters))]
    return [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]


def comes_out_pale(path: Path) -> bool:
    """Whether a video is HDR, and the installed ffmpeg cannot bring it to a usual screen."""
    return colour_filters(ffmpeg("read"), path).pale


def reader() -> str:
    """What videos are read by."""
    return _version(ffmpeg("read"))


@cache
def _version(program: str) -> str:
    said = subprocess.run([program, "-version"], capture_output=True, stdin=subprocess.DEVNULL, timeout=20)
    return said.stdout.partition(b"\n")[0].decode(errors="replace")


@cache
def _sync(program: str) -> str:
    """What an ffmpeg calls the option for when pictures are shown: another name since 5.1, and only that since 8."""
    said = subprocess.run([program, "-h", "long"], capture_output=True, stdin=subprocess.DEVNULL, timeout=20)
    return "-fps_mode" if b"-fps_mode" in said.stdout else "-vsync"
