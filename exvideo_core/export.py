"""From frames to a file: raw frames stream into the bundled ffmpeg."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from queue import Empty, Full, Queue
from typing import IO, NamedTuple

import torch
import torch.nn.functional as F

from .formats import PREVIEW, Format, does_not_run, ffmpeg, format_named
from .types import ExVideoError

_QUIETLY = ("-y", "-nostdin", "-v", "error", "-abort_on", "empty_output")
_PATIENCE = 0.2
"""Seconds between looks at whether to go on, while an encoder reads or finishes."""
_END = 5.0
"""Seconds that a killed encoder is waited for; where a disk no longer answers, it may not end."""
_FAREWELL = 1.0
"""Seconds for what is left in the pipes of an encoder that is gone."""
_ENOUGH = 1000
"""Bytes of what ffmpeg says that are told: the first, which are the cause. What follows is how its parts end."""


class Audio(NamedTuple):
    """Sound to go with a video: waveform [channels, samples] in [−1, 1], samples a second."""

    waveform: torch.Tensor
    sample_rate: int


def save_video(
    frames: Iterable[torch.Tensor],
    path: Path,
    fps: float,
    format: str = "mp4-h264",
    crf: int = 19,
    metadata: Mapping[str, str] | None = None,
    audio: Audio | None = None,
    length: int | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> int:
    """Encode frames into a video file, one at a time, as they come.

    Args:
        frames: [H, W, C] each, values in [0, 1]; grey, RGB or RGBA, of which the colour is kept. Where a format stores
            colour for 2×2 pixels, odd sizes grow by a repeated row or column, and by more of them what is too small for
            an encoder. Values out of range are clipped, NaN is black.
        path: what to write to, whatever its suffix; on failure it is for the caller to remove. Of a format that is a
            folder of pictures, that folder.
        fps: frames a second; of a format that plays no more than so many, frames are dropped beyond.
        format: a name in `FORMATS`.
        crf: quality, 0 (best) to 51 (worst); see `formats`.
        metadata: texts of JSON to store in the file, where the format takes any.
        audio: cut to the video's length where it is longer; mixed to one channel where it has more than the format
            carries. One without channels or samples is none.
        length: how many frames there are, to cut the audio by; by default as many as `len(frames)` says.
        waiting: called several times a second while ffmpeg reads or finishes, and texts are written; what it raises
            ends that.

    Returns:
        The number of frames.

    Raises:
        ExVideoError: nothing to save, an unknown format, an impossible fps, or an encoder that failed, in its words.
    """
    check_rate(fps)
    kind = format_named(format)
    source = iter(frames)
    first = next(source, None)
    if first is None or first.ndim != 3 or not first.numel():
        got = "none" if first is None else f"one of shape {list(first.shape)}"
        raise ExVideoError(f"There are no frames to save: expected [H, W, channels] each, got {got}.")
    height, width = kind.stored(*first.shape[:2])
    rate = _rate(fps)
    if audio is not None and not audio.waveform.numel():
        audio = None
    if audio is not None:
        length = len(frames) if length is None else length  # type: ignore[arg-type]
        # No more of it than is heard: it may be an hour's.
        heard = math.ceil(length / rate * audio.sample_rate) + 1
        audio = _carried(audio._replace(waveform=audio.waveform[:, :heard]), kind.channels)
    # With the end rounded up, for otherwise of a clip shorter than one frame there would be none.
    filters = kind.filters if rate <= kind.fastest else f"fps={kind.fastest}:eof_action=pass,{kind.filters}"

    texts_as_read = {name: kind.as_read(text) for name, text in (metadata or {}).items()}
    with _scratch(_metadata_text(texts_as_read), audio) as (texts, sound):
        pixels = "rgb48le" if kind.deep else "rgb24"
        inputs = ["-f", "rawvideo", "-pix_fmt", pixels, "-s", f"{width}x{height}", "-r", str(rate), "-i", "pipe:0"]
        inputs += ["-f", "ffmetadata", "-i", str(texts)]
        streams = ["-map", "0:v", "-map_metadata", "1"]
        if audio is not None and kind.audio:
            channels = str(audio.waveform.shape[0])
            inputs += ["-f", "f32le", "-ar", str(audio.sample_rate), "-ac", channels, "-i", str(sound)]
            streams += ["-map", "2:a", "-c:a", kind.audio, "-b:a", "192k", "-t", f"{float((length or 0) / rate):.6f}"]
        command = [ffmpeg(), *_QUIETLY, *inputs, *streams, "-vf", filters, "-c:v", kind.codec, *kind.encoder]
        command += [*kind.quality(crf), *kind.container, _as_ffmpeg_names(path, kind)]
        raw = (_raw(frame, first.shape[:2], (height, width), kind.deep) for frame in itertools.chain([first], source))
        count = _encode(command, raw, waiting)
    if not (any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size):
        raise does_not_run("saved", ValueError(f"{command[0]} wrote nothing"))
    if metadata and kind.texts is not None:
        try:
            kind.texts(path, metadata, waiting)
        except OSError as error:
            raise ExVideoError(f"The graph could not be written into the video ({error}): free some space.") from error
    return count


def save_preview(video: Path, path: Path, fps: float, format: str, waiting: Callable[[], None] = lambda: None) -> None:
    """Make a small silent MP4, for a node to show, of what `save_video` saved.

    Args:
        video: the file, or the folder of pictures.
        path: what to write to; on failure it is for the caller to remove.
        fps: frames a second, as it was saved with.
        format: as it was saved in.
        waiting: called several times a second; what it raises ends that.

    Raises:
        ExVideoError: the encoder failed, in its words.
    """
    kind = format_named(format)
    pictures = ["-pattern_type", "sequence", "-framerate", str(_rate(fps))] if kind.pictures else []
    command = [ffmpeg(), *_QUIETLY, *pictures, "-i", _as_ffmpeg_names(video, kind), "-map", "0:v"]
    _encode([*command, *PREVIEW, str(path)], iter(()), waiting)


def check_rate(fps: float) -> None:
    """Raise ExVideoError unless a video can play at so many frames a second."""
    if not 0.01 <= fps <= 1000:
        raise ExVideoError(f"A video plays at 0.01 to 1000 frames a second, got fps = {fps}.")


def check_crf(crf: int) -> None:
    """Raise ExVideoError unless there is such a quality; the host checks no number that comes through a link."""
    if not 0 <= crf <= 51:
        raise ExVideoError(f"The quality of a video is 0 to 51, of which 0 is the best; got crf = {crf}.")


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001 * 1000)


def _as_ffmpeg_names(path: Path, kind: Format) -> str:
    # Names of pictures are a pattern, in which a percent sign of the folder's would be a number's place.
    return str(path).replace("%", "%%") + f"/{kind.pictures}" if kind.pictures else str(path)


def _raw(frame: torch.Tensor, size: tuple[int, ...], stored: tuple[int, int], deep: bool) -> memoryview:
    """A frame as ffmpeg takes it, 3 numbers a pixel of 8 bits, or deep ones of 16; grown from one (height, width) to
    the other."""
    if frame.shape[:-1] != size:
        height, width = size
        raise ExVideoError(f"All frames of a video have one size, {width}×{height}; got one of {list(frame.shape)}.")
    if frame.shape[-1] < 3:
        frame = frame[..., :1].expand(-1, -1, 3)
    frame = frame[..., :3].float()
    if stored != size:
        down, right = (to - side for to, side in zip(stored, size, strict=True))
        frame = F.pad(frame.movedim(-1, 0), (0, right, 0, down), mode="replicate").movedim(0, -1)
    most, kind = (65535, torch.int32) if deep else (255, torch.uint8)
    pixels = (frame.nan_to_num() * most).round().clamp(0, most).to("cpu", kind).contiguous().numpy()
    return (pixels.astype("<u2") if deep else pixels).data.cast("B")


def _carried(audio: Audio, channels: int) -> Audio:
    """Sound as an encoder takes it: numbers within their range, and no more channels than there may be."""
    waveform = audio.waveform.float().nan_to_num().clamp(-1, 1)
    return audio._replace(waveform=waveform if len(waveform) <= channels else waveform.mean(0, keepdim=True))


def _encode(command: list[str], frames: Iterator[memoryview], waiting: Callable[[], None]) -> int:
    """Feed an encoder; whatever happens, it is gone when this returns. Returns the number of frames."""
    count, said = 0, bytearray()
    # One frame at most waits here, so that a slow encoder holds back what makes them.
    queue: Queue[memoryview | None] = Queue(1)
    # Without its greeting, which the AV1 encoder would write before whatever is wrong.
    quiet = {**os.environ, "SVT_LOG": "1"}
    try:
        encoder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=quiet
        )
    except OSError as error:
        raise does_not_run("saved", error) from error
    # In threads, for on no system can a pipe be waited for and the person's cancel too. Daemons, for what the encoder
    # started may outlive it and hold the pipes open.
    writer = threading.Thread(target=_write, args=(encoder.stdin, queue), daemon=True)
    # Not into a file: of a full disk, it could not tell.
    listener = threading.Thread(target=_listen, args=(encoder.stderr, said), daemon=True)
    try:
        writer.start()
        listener.start()
        for frame in itertools.chain(frames, [None]):
            if not _put(frame, queue, writer, waiting):
                break  # the encoder ended early, of a full disk, say: its own message tells
            count += frame is not None
        while encoder.poll() is None:  # palettes, say, are made only now
            waiting()
            with suppress(subprocess.TimeoutExpired):
                encoder.wait(_PATIENCE)
        failed = encoder.returncode != 0
    finally:
        if encoder.poll() is None:
            encoder.kill()
            with suppress(subprocess.TimeoutExpired):
                encoder.wait(_END)
        with suppress(Empty):
            queue.get_nowait()
        queue.put_nowait(None)
        writer.join(_FAREWELL)
        listener.join(_FAREWELL)
    if failed:
        message = said.decode(errors="replace").strip() or f"nothing, and ended with status {encoder.returncode}"
        raise ExVideoError(f"The video could not be encoded. ffmpeg says: {message}")
    return count


def _put(
    frame: memoryview | None, queue: Queue[memoryview | None], writer: threading.Thread, waiting: Callable[[], None]
) -> bool:
    """Queue a frame as soon as there is room, or the end of them; whether anybody is left to write it."""
    while writer.is_alive():
        with suppress(Full):
            queue.put(frame, timeout=_PATIENCE)
            return True
        waiting()
    return False


def _write(stdin: IO[bytes], queue: Queue[memoryview | None]) -> None:
    """Write frames until there are no more, or nobody reads them."""
    with suppress(OSError), stdin:
        while (frame := queue.get()) is not None:
            stdin.write(frame)


def _listen(stderr: IO[bytes], said: bytearray) -> None:
    """Keep the beginning of what a process says, and let it say the rest."""
    with stderr:
        while part := os.read(stderr.fileno(), 4096):
            said += part[: max(_ENOUGH - len(said), 0)]


@contextmanager
def _scratch(texts: str, audio: Audio | None) -> Iterator[tuple[Path, Path]]:
    """Files that ffmpeg reads beside the frames. A command line would be too short for a big workflow.

    Raises:
        ExVideoError: they cannot be written.
    """
    with ExitStack() as stack:
        try:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="exvideo-"))
            metadata, sound = Path(name, "metadata.txt"), Path(name, "sound.f32")
            metadata.write_text(texts, encoding="utf-8")
            if audio is not None:
                samples = audio.waveform.movedim(0, -1).cpu().contiguous().numpy()
                sound.write_bytes(samples.astype("<f4").tobytes())
        except OSError as error:
            raise ExVideoError(
                f"What goes into the video cannot be put down in the system's folder for temporary files ({error}): "
                "free some space there, or let the environment variable TMPDIR name another folder."
            ) from error
        yield metadata, sound


def _metadata_text(metadata: Mapping[str, str]) -> str:
    """ffmpeg's metadata format: `=`, `;`, `#`, backslash and line ends are escaped by a backslash."""
    escapes = str.maketrans({c: f"\\{c}" for c in "\\=;#\n"})
    lines = [f"{key.translate(escapes)}={value.translate(escapes)}" for key, value in metadata.items()]
    return "\n".join([";FFMETADATA1", *lines, ""])
