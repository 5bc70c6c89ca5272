"""Little videos to try things on: drawn by ffmpeg's own sources, and damaged as a bad disk does it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg


def draw_video(path: Path, *options: str, source: str = "testsrc=size=160x120:rate=30", seconds: float = 1.0) -> Path:
    """Write a video, over one that is there, and make its folder.

    Args:
        path: its suffix says what kind of file.
        options: ffmpeg's, of how to encode it.
        source: what it shows, as ffmpeg's lavfi understands it.
        seconds: its length.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "lavfi", "-i", source, "-t", str(seconds)]
    subprocess.run([*command, *options, str(path)], check=True)
    return path


def damage(video: Path) -> Path:
    """Change some bytes of an MP4: in its second half, and not of what says where its frames lie."""
    data = bytearray(video.read_bytes())
    begin = data.index(b"mdat") + 1000
    end = begin + int.from_bytes(data[data.index(b"mdat") - 4 : data.index(b"mdat")], "big") - 1100
    for place in range((begin + end) // 2, end, 397):
        data[place] ^= 0x5A
    video.write_bytes(data)
    return video
