"""Colours of videos as players show them, where ffmpeg by itself would take them for others."""

from __future__ import annotations

import logging
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

_SIZE = re.compile(r" s:(?P<width>\d+)x(?P<height>\d+) ")
_COLOURS = re.compile(r"color_space:(?P<space>\S+) .*color_trc:(?P<curve>\S+)")
_HDR = {"arib-std-b67", "smpte2084"}
"""Curves of brightness of ITU-R BT.2100: HLG and PQ."""
_LARGE = 720
"""Rows from which on a video is of high definition."""
_WHITE, _BRIGHTEST = 203, 1000
"""In nits: white paper in HDR (ITU-R BT.2408), and what a usual screen is to show at its brightest."""
_FROM_HDR = (
    # Light itself, in the colours of BT.709; then what is brighter than white is pressed together below it.
    f"zscale=transfer=linear:npl={_WHITE},format=gbrpf32le,zscale=primaries=bt709,"
    f"tonemap=mobius:desat=0:peak={_BRIGHTEST / _WHITE:.2f},zscale=transfer=bt709:matrix=gbr:range=pc"
)

log = logging.getLogger(__name__)


class Filters(NamedTuple):
    """What ffmpeg is to do before all else, and in the end; each may be empty. `pale` where it could not do enough."""

    first: str = ""
    last: str = ""
    pale: bool = False


def colour_filters(program: str, path: Path) -> Filters:
    """What makes the colours of a video those of a usual screen.

    Two kinds of videos come out of ffmpeg in other colours than players show. Those of high definition that do not say
    how their colours became numbers: they are taken for BT.601, as those of standard definition are, and greens and
    reds turn. And HDR, as newer phones record it: it comes out pale.

    Args:
        program: ffmpeg's path.
        path: of the video.
    """
    command = [program, "-nostdin", "-hide_banner", "-i", str(path.absolute()), "-map", "0:V:0", "-frames:v", "1"]
    command += ["-vf", "showinfo", "-f", "null", "-"]
    try:
        said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).stderr.decode(errors="replace")
    except OSError:  # whoever reads the video will say so
        return Filters()
    size, colours = _SIZE.search(said), _COLOURS.search(said)
    if size is None or colours is None:  # no video, or an ffmpeg that does not tell
        return Filters()
    unknown = colours["space"] == "unknown"
    hdr = colours["curve"] in _HDR
    if hdr and knows_hdr(program):
        matrix = ":colorspace=bt2020nc" if unknown else ""
        return Filters(f"setparams=color_primaries=bt2020{matrix}", _FROM_HDR)
    rows = max(int(size["height"]), int(size["width"]) * 9 // 16)  # films have fewer
    return Filters("setparams=colorspace=bt709" if unknown and rows >= _LARGE else "", pale=hdr)


@cache
def knows_hdr(program: str) -> bool:
    """Whether an ffmpeg has the filters for HDR; says once in the log where it has not."""
    said = subprocess.run([program, "-hide_banner", "-filters"], stdin=subprocess.DEVNULL, capture_output=True).stdout
    knows = b" zscale " in said and b" tonemap " in said
    if not knows:
        log.warning(
            "ExVideo learns pale colours from HDR videos, for this ffmpeg lacks the filters zscale and tonemap: let "
            "the environment variable IMAGEIO_FFMPEG_EXE name one that has them, or convert the videos."
        )
    return knows
