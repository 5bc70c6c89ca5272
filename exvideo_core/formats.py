"""The kinds of files that videos are saved as: one row each, and no code that knows one from another."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg

from .texts import without_braces_in_strings, write_in_pngs, write_in_webp
from .types import ExVideoError


def _even(height: int, width: int) -> tuple[int, int]:
    """Of formats that store colour for 2×2 pixels."""
    return height + height % 2, width + width % 2


def _as_it_is(height: int, width: int) -> tuple[int, int]:
    return height, width


def _for_x265(height: int, width: int) -> tuple[int, int]:
    """It refuses what is smaller, and crashes at one width."""
    height, width = _even(max(height, 16), max(width, 16))
    return height, 50 if width == 48 else width


def _for_svt_av1(height: int, width: int) -> tuple[int, int]:
    """It crashes where neither side is longer than 8."""
    height, width = _even(height, width)
    return height, width if max(height, width) > 8 else 10


class Format(NamedTuple):
    """A kind of video file, and what ffmpeg needs to be told to make it.

    Attributes:
        suffix: of the file; none where it is a folder of pictures.
        codec: ffmpeg's name of the encoder, without which the format is not offered.
        encoder: the encoder's settings.
        container: what kind of file.
        quality: from crf, 0 (best) … 51 (worst), to the encoder's own scale.
        filters: of the picture, ffmpeg's.
        stored: from a picture's height and width to those that it grows to, for the encoder to take it.
        fastest: frames a second that it can play: of GIF and WebP, browsers show each frame for a tenth of a second
            where it should be a hundredth or less.
        audio: ffmpeg's name of the encoder for sound; none where the format carries none.
        channels: of sound, that the encoder takes.
        deep: whether it holds more than 8 bits a colour, and so is given 16.
        pictures: the names of single pictures, in a format that is a folder of them.
        shown: whether ComfyUI's page shows it in the node; its player knows no GIF.
        texts: writes texts into the finished file, by their names, where ffmpeg does not; see `texts`.
        as_read: from a text of JSON to the same as the format's readers need it.
    """

    suffix: str
    codec: str
    encoder: Sequence[str]
    container: Sequence[str]
    quality: Callable[[int], Sequence[str]]
    filters: str
    stored: Callable[[int, int], tuple[int, int]] = _even
    fastest: int = 1000
    audio: str = ""
    channels: int = 2
    deep: bool = False
    pictures: str = ""
    shown: bool = True
    texts: Callable[[Path, Mapping[str, str], Callable[[], None]], None] | None = None
    as_read: Callable[[str], str] = str


# Frames leave here as RGB of full range; files carry BT.709 of video range and say so, as players assume for HD.
_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,"
    "setparams=color_primaries=bt709:color_trc=bt709"
)
_TAGGED = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv")
# The index goes to the front: ComfyUI's page reads the workflow from the first 64 MiB of a dropped file.
_FRONT = ("-movflags", "use_metadata_tags+faststart")
# A palette of the whole clip, so that colours do not jump; no dither that changes from frame to frame.
_PALETTE = "split[a][b];[a]palettegen=stats_mode=full[p];[b][p]paletteuse=dither=bayer:bayer_scale=4"


def _crf(crf: int) -> Sequence[str]:
    return ("-crf", str(crf))


FORMATS: Mapping[str, Format] = {
    "mp4-h264": Format(
        ".mp4", "libx264", ("-preset", "medium", "-pix_fmt", "yuv420p", *_TAGGED), ("-f", "mp4", *_FRONT),
        _crf, _BT709, audio="aac", channels=8,
    ),
    "mp4-h265-10bit": Format(
        ".mp4", "libx265",
        # The tag is what Apple's players look for; without the last, the encoder writes a page into the log.
        ("-preset", "medium", "-pix_fmt", "yuv420p10le", "-tag:v", "hvc1", "-x265-params", "log-level=error", *_TAGGED),
        ("-f", "mp4", *_FRONT), _crf, _BT709, stored=_for_x265, audio="aac", channels=8,
        deep=True, shown=False,
    ),
    "mp4-av1": Format(
        ".mp4", "libsvtav1", ("-preset", "6", "-pix_fmt", "yuv420p10le", *_TAGGED), ("-f", "mp4", *_FRONT),
        # AV1's scale ends at 63. Its 0 is another mode, not lossless.
        lambda crf: ("-crf", str(max(1, round(crf * 63 / 51)))), _BT709, stored=_for_svt_av1, fastest=240,
        audio="aac", channels=8, deep=True,
    ),
    "webm-vp9": Format(
        ".webm", "libvpx-vp9",
        ("-b:v", "0", "-row-mt", "1", "-cpu-used", "3", "-pix_fmt", "yuv420p", *_TAGGED), ("-f", "webm"),
        lambda crf: ("-crf", str(round(crf * 63 / 51))), _BT709, audio="libopus",
        as_read=without_braces_in_strings,
    ),
    "mov-prores": Format(
        ".mov", "prores_ks", ("-profile:v", "3", "-pix_fmt", "yuv422p10le", "-vendor", "apl0", *_TAGGED),
        ("-f", "mov", *_FRONT), lambda crf: ("-q:v", str(1 + crf // 4)), _BT709, audio="pcm_s16le",
        channels=16, deep=True, shown=False,
    ),
    "gif": Format(
        ".gif", "gif", (), ("-f", "gif", "-loop", "0"), lambda crf: (), _PALETTE, stored=_as_it_is, fastest=50,
        shown=False,
    ),
    "webp": Format(
        ".webp", "libwebp_anim", ("-pix_fmt", "bgra"), ("-f", "webp", "-loop", "0"),
        lambda crf: ("-lossless", "1") if crf == 0 else ("-quality", str(round(100 - crf * 100 / 51))),
        "null", stored=_as_it_is, fastest=90, texts=write_in_webp,
    ),
    "png": Format(
        "", "png", ("-pix_fmt", "rgb24"), ("-f", "image2"), lambda crf: (), "null", stored=_as_it_is,
        pictures="frame_%05d.png", shown=False, texts=write_in_pngs,
    ),
}  # fmt: skip
"""By the names that nodes and API clients give."""


_ADVICE = (
    "run `pip install --force-reinstall imageio-ffmpeg` with ComfyUI's Python, and let the environment variable "
    "IMAGEIO_FFMPEG_EXE name an ffmpeg that works, or nothing."
)
PREVIEW = (
    "-vf", f"scale=w='trunc((min(768,iw)+1)/2)*2':h=-2,{_BT709}", "-c:v", "libx264", "-preset", "veryfast",
    "-crf", "24", "-pix_fmt", "yuv420p", *_TAGGED, "-f", "mp4", "-movflags", "faststart",
)  # fmt: skip
"""What a node shows where the page does not show the file."""


def format_named(name: str) -> Format:
    """A format by its name; ExVideoError lists the names there are."""
    if name not in FORMATS:
        raise ExVideoError(f"There is no video format {name}: choose {', '.join(FORMATS)}.")
    return FORMATS[name]


def encodable_formats() -> list[str]:
    """The names of the formats that the installed ffmpeg can make.

    Raises:
        ExVideoError: there is none, or it does not work.
    """
    try:
        known = _encoders()
    except (OSError, subprocess.SubprocessError) as error:
        raise does_not_run("saved", error) from error
    return [name for name, kind in FORMATS.items() if kind.codec in known]


def offered_formats() -> list[str]:
    """The names of the formats that the installed ffmpeg can make; of all, where there is none that can make any."""
    try:
        return encodable_formats() or list(FORMATS)
    except ExVideoError:
        return list(FORMATS)  # saving will say what is wrong


def ffmpeg(doing: str = "saved") -> str:
    """The path of ffmpeg.

    Args:
        doing: what is done to videos by it, to be told.

    Raises:
        ExVideoError: there is none.
    """
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise ExVideoError(f"Videos are {doing} by ffmpeg, and there is none: {_ADVICE}") from error


def does_not_run(doing: str, error: Exception) -> ExVideoError:
    """What to tell where there is an ffmpeg that cannot be started; `doing` as for `ffmpeg`."""
    return ExVideoError(f"Videos are {doing} by ffmpeg, and it does not run ({error}): {_ADVICE}")


@cache
def _encoders() -> set[str]:
    command = [ffmpeg(), "-hide_banner", "-encoders"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return {words[1] for words in map(str.split, said.stdout.splitlines()) if len(words) > 1}
