"""From frames to a file: raw frames stream into the bundled ffmpeg; the file appears only when it is whole."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import IO, NamedTuple

import imageio_ffmpeg
import torch
import torch.nn.functional as F

from .files import whole_or_nothing
from .types import ExVideoError


class Format(NamedTuple):
    """A kind of video file: its extension and what ffmpeg needs to be told."""

    suffix: str
    encoder: Sequence[str]
    container: Sequence[str]


FORMATS: Mapping[str, Format] = {
    "mp4-h264": Format(
        suffix=".mp4",
        encoder=("-c:v", "libx264", "-preset", "medium", "-pix_fmt", "yuv420p"),
        # The index goes to the front: ComfyUI's page reads the workflow from the first 64 MiB of a dropped file.
        container=("-f", "mp4", "-movflags", "use_metadata_tags+faststart"),
    ),
}


def format_named(name: str) -> Format:
    """A format by its name; ExVideoError lists the names there are."""
    if name not in FORMATS:
        raise ExVideoError(f"There is no video format {name}: choose {', '.join(FORMATS)}.")
    return FORMATS[name]


# Frames leave here as RGB of full range; files carry BT.709 of video range and say so, as players assume for HD.
_COLOUR = (
    "-vf", "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int",
    "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv",
)  # fmt: skip


class Audio(NamedTuple):
    """Sound to go with a video: waveform [channels, samples] in [−1, 1], samples a second."""

    waveform: torch.Tensor
    sample_rate: int


def save_video(
    frames: torch.Tensor,
    path: Path,
    fps: float,
    format: str = "mp4-h264",
    crf: int = 19,
    metadata: Mapping[str, str] | None = None,
    audio: Audio | None = None,
    on_frame: Callable[[int], None] = lambda frame: None,
) -> None:
    """Encode frames into a video file.

    Args:
        frames: [T, H, W, C], values in [0, 1]; grey, RGB or RGBA, of which the colour is kept. Odd sizes grow by
            a repeated row or column, because video stores colour for 2×2 pixels.
        path: where the file appears once it is whole; its folder exists.
        fps: frames a second.
        format: a name in `FORMATS`.
        crf: quality, 0 (lossless) to 51 (worst).
        metadata: texts to store in the container.
        audio: cut to the video's length where it is longer.
        on_frame: called before each frame with its number; may raise to stop.

    Raises:
        ExVideoError: nothing to save, an unknown format, an impossible fps, or an encoder that failed, in its words.
    """
    if frames.ndim != 4 or not frames.numel():
        raise ExVideoError(f"There are no frames to save: expected [T, H, W, channels], got {list(frames.shape)}.")
    if not 0.01 <= fps <= 1000:
        raise ExVideoError(f"A video plays at 0.01 to 1000 frames a second, got fps = {fps}.")
    kind = format_named(format)
    height, width = (side + side % 2 for side in frames.shape[1:3])
    rate = Fraction(fps).limit_denominator(1001 * 1000)

    with _scratch(_metadata_text(metadata or {}), audio) as (texts, sound), whole_or_nothing(path) as partial:
        inputs = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate), "-i", "pipe:0"]
        inputs += ["-f", "ffmetadata", "-i", str(texts)]
        streams = ["-map", "0:v", "-map_metadata", "1"]
        if audio is not None:
            channels = str(audio.waveform.shape[0])
            inputs += ["-f", "f32le", "-ar", str(audio.sample_rate), "-ac", channels, "-i", str(sound)]
            streams += ["-map", "2:a", "-c:a", "aac", "-b:a", "192k", "-t", f"{float(len(frames) / rate):.6f}"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-nostdin", "-v", "error", *inputs, *streams]
        command += [*_COLOUR, *kind.encoder, "-crf", str(crf), *kind.container, str(partial)]
        _encode(command, _raw_frames(frames, height, width, on_frame))


def _raw_frames(frames: torch.Tensor, height: int, width: int, on_frame: Callable[[int], None]) -> Iterator[memoryview]:
    for number, frame in enumerate(frames):
        on_frame(number)
        if frame.shape[-1] < 3:
            frame = frame[..., :1].expand(-1, -1, 3)
        margins = (0, width - frame.shape[1], 0, height - frame.shape[0])
        frame = F.pad(frame[..., :3].movedim(-1, 0).float(), margins, mode="replicate").movedim(0, -1)
        pixels = (frame.nan_to_num() * 255).round().clamp(0, 255).to("cpu", torch.uint8)
        yield pixels.contiguous().numpy().data.cast("B")


def _encode(command: list[str], frames: Iterator[memoryview]) -> None:
    """Feed an encoder; whatever happens, it is gone when this returns."""
    with tempfile.TemporaryFile() as log:
        encoder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)
        assert encoder.stdin is not None
        try:
            for frame in frames:
                try:
                    encoder.stdin.write(frame)
                except OSError:  # the encoder ended early, of a full disk, say: its own message tells
                    break
            with suppress(OSError):
                encoder.stdin.close()
            failed = encoder.wait() != 0
        finally:
            if encoder.poll() is None:
                encoder.kill()
                encoder.wait()
            with suppress(OSError):
                encoder.stdin.close()
        if failed:
            raise ExVideoError(f"The video could not be encoded. ffmpeg says: {_tail(log)}")


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace").strip()[-1000:] or "nothing"


@contextmanager
def _scratch(texts: str, audio: Audio | None) -> Iterator[tuple[Path, Path]]:
    """Files that ffmpeg reads beside the frames. A command line would be too short for a big workflow."""
    with tempfile.TemporaryDirectory(prefix="exvideo-") as name:
        metadata, sound = Path(name, "metadata.txt"), Path(name, "sound.f32")
        metadata.write_text(texts, encoding="utf-8")
        if audio is not None:
            samples = audio.waveform.movedim(0, -1).float().cpu().contiguous().numpy()
            sound.write_bytes(samples.astype("<f4").tobytes())
        yield metadata, sound


def _metadata_text(metadata: Mapping[str, str]) -> str:
    """ffmpeg's metadata format: `=`, `;`, `#`, backslash and line ends are escaped by a backslash."""
    escapes = str.maketrans({c: f"\\{c}" for c in "\\=;#\n"})
    lines = [f"{key.translate(escapes)}={value.translate(escapes)}" for key, value in metadata.items()]
    return "\n".join([";FFMETADATA1", *lines, ""])
