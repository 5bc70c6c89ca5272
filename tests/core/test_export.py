import json

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from exvideo_core import export
from exvideo_core.export import Audio, check_crf, save_preview, save_video
from exvideo_core.formats import FORMATS, format_named, offered_formats
from exvideo_core.types import ExVideoError


def read(path):
    if path.suffix in (".gif", ".webp"):  # of which ffmpeg repeats frames, or reads none
        with Image.open(path) as picture:
            meta = {"codec": path.suffix[1:], "size": picture.size, "fps": 0}
            frames = [torch.tensor(np.asarray(frame.convert("RGB"))) for frame in ImageSequence.Iterator(picture)]
            meta["fps"] = 1000 / (picture.info.get("duration") or 1000)
        return meta, torch.stack(frames).float() / 255
    # Exact rounding, since it is the file that is looked at.
    reader = imageio_ffmpeg.read_frames(str(path), output_params=["-sws_flags", "accurate_rnd+full_chroma_int"])
    meta = next(reader)
    width, height = meta["size"]
    frames = [torch.frombuffer(bytearray(frame), dtype=torch.uint8).view(height, width, 3) for frame in reader]
    return meta, torch.stack(frames).float() / 255


def save(folder, frames, format="mp4-h264", **options):
    """Save into a folder; returns the path of the video, or of the first picture."""
    kind = format_named(format)
    path = folder / f"a{kind.suffix}"
    if kind.pictures:
        path.mkdir()
    save_video(frames, path, **{"fps": 30, "format": format, **options})
    return path / kind.pictures if kind.pictures else path


@pytest.fixture
def frames():
    ramp = torch.linspace(0.1, 0.9, 64).view(1, 1, 64, 1).expand(10, 48, 64, 3).clone()
    ramp[..., 1] = torch.linspace(0.2, 0.8, 10).view(10, 1, 1)
    return ramp


@pytest.fixture(scope="module")
def chart():
    """27 colours."""
    levels = torch.tensor([0, 128, 255]) / 255
    colours = torch.cartesian_prod(levels, levels, levels)
    return colours.view(1, 3, 9, 3).repeat_interleave(16, 1).repeat_interleave(16, 2).expand(3, -1, -1, -1)


CODECS = {
    "mp4-h264": "h264", "mp4-h265-10bit": "hevc", "mp4-av1": "av1", "webm-vp9": "vp9", "mov-prores": "prores",
    "gif": "gif", "webp": "webp", "png": "png",
}  # fmt: skip


def test_every_format_is_known_here_and_offered():
    assert list(FORMATS) == list(CODECS) == offered_formats()


@pytest.mark.parametrize("format", FORMATS)
def test_a_video_of_every_format_reads_back(tmp_path, frames, format):
    path = save(tmp_path, frames, format, fps=25, crf=10)
    meta, back = read(path)
    assert meta["codec"].strip(",") == CODECS[format]
    assert meta["size"] == (64, 48)
    assert len(back) == 10
    if format != "png":
        assert meta["fps"] == 25
    # A palette of 256 colours is coarser than what the others do.
    assert (back - frames).abs().mean() < (0.05 if format == "gif" else 0.02)


# GIF has 256 colours for the whole clip, and ProRes no lossless setting.
@pytest.mark.parametrize("format", FORMATS)
def test_colours_come_back(tmp_path, chart, format):
    _, back = read(save(tmp_path, chart, format, crf=0))
    worst = (back[-1] - chart[0])[8::16, 8::16].abs().max() * 255
    assert worst <= {"gif": 4.5}.get(format, 2.01)


def test_the_colours_are_labelled(tmp_path, chart):
    av = pytest.importorskip("av")
    for format in ("mp4-h264", "mp4-h265-10bit", "mp4-av1", "webm-vp9", "mov-prores"):
        folder = tmp_path / format
        folder.mkdir()
        with av.open(str(save(folder, chart, format))) as container:
            context = container.streams.video[0].codec_context
            next(container.decode(video=0))
            assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


def test_ntsc_rates_are_kept(tmp_path, frames):
    assert read(save(tmp_path, frames, fps=30000 / 1001))[0]["fps"] == pytest.approx(29.97)


@pytest.mark.parametrize("format", [name for name, kind in FORMATS.items() if kind.suffix in (".mp4", ".mov")])
def test_the_graph_travels_in_the_file_front(tmp_path, frames, format):
    graph = json.dumps({"1": {"text": "a = b; c # d \\ \n ü 猫", "list": list(range(50_000))}})
    path = save(tmp_path, frames, format, metadata={"prompt": graph, "workflow": "{}"})
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["prompt"]) == json.loads(graph)
        assert container.metadata["workflow"] == "{}"


def test_braces_in_a_webms_texts_are_balanced_as_they_stand(tmp_path, frames):
    """As the page counts them, which knows no strings."""
    graph = {"a { b": ["} \\", '"{"', {"\\": "{{ ü"}], "": {}}
    path = save(tmp_path, frames, "webm-vp9", metadata={"prompt": json.dumps(graph), "workflow": json.dumps([graph])})
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        texts = {name.lower(): text for name, text in container.metadata.items()}
    assert json.loads(texts["prompt"]) == graph
    assert json.loads(texts["workflow"]) == [graph]
    for text in texts["prompt"], texts["workflow"]:
        assert text.count("{") == text.count("}") == 3


TEXTS = {"prompt": json.dumps({"1": {"text": "a: b ü 猫", "list": list(range(50_000))}}), "workflow": "{}", "猫": "é"}


@pytest.mark.parametrize("count", [1, 3])
def test_the_graph_travels_in_every_picture(tmp_path, frames, count):
    pattern = str(save(tmp_path, frames[:count], "png", metadata=TEXTS))
    for number in range(1, count + 1):
        with Image.open(pattern % number) as picture:
            assert picture.text == {"prompt": TEXTS["prompt"], "workflow": "{}", "?": "é"}
            difference = torch.tensor(np.asarray(picture)) / 255 - frames[number - 1]
        assert difference.abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("crf", [0, 19])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_the_graph_travels_in_a_webp(tmp_path, frames, count, same, crf):
    """Frames that are all the same become a file of another form."""
    frames = frames[:1].expand(count, -1, -1, -1) if same else frames[:count]
    _, plain = read(save(tmp_path, frames, "webp", crf=crf))
    path = save(tmp_path, frames, "webp", metadata=TEXTS, crf=crf)
    with Image.open(path) as picture:
        assert picture.n_frames == (1 if same else count)
        texts = picture.getexif()
        assert [texts[tag] for tag in (0x10F, 0x10E, 0x10D)] == [
            f"prompt:{TEXTS['prompt']}", "workflow:{}", "?:?",
        ]  # fmt: skip
    assert torch.equal(read(path)[1], plain)
    # As the page goes through it: from chunk to chunk, of whose padding it knows nothing, to the last.
    data, at, names = path.read_bytes(), 12, []
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    while at < len(data) - 1:
        names.append(data[at : at + 4])
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    assert 0 <= len(data) - at <= 1
    assert (names[0], names[-1]) == (b"VP8X", b"EXIF")


def test_the_page_finds_the_graph_in_a_picture_of_any_number_of_bytes(tmp_path):
    """It goes from chunk to chunk and knows nothing of the byte after one of odd size."""
    for seed in range(8):
        picture = torch.rand(1, 20, 24, 3, generator=torch.Generator().manual_seed(seed))
        data, at = save(tmp_path, picture, "webp", metadata=TEXTS, crf=0).read_bytes(), 12
        while at < len(data) and data[at : at + 4] != b"EXIF":
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        assert at < len(data)
        with Image.open(tmp_path / "a.webp") as read_back:
            difference = torch.tensor(np.asarray(read_back.convert("RGB"))) / 255 - picture[0]
        assert difference.abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("format", ["mp4-h265-10bit", "mp4-av1", "mov-prores"])
def test_formats_of_ten_bits_hold_gradients_that_eight_cannot(tmp_path, format):
    """Between 0.50 and 0.52 lie 6 levels of 8 bits."""
    ramp = torch.linspace(0.50, 0.52, 512).view(1, 1, 512, 1).expand(2, 64, 512, 3)
    path = save(tmp_path, ramp, format, crf=0)
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="gray16le", bits_per_pixel=16)
    next(reader)
    row = np.frombuffer(next(reader), "<u2").reshape(64, 512)[32]
    reader.close()
    assert len(np.unique(row)) > 12


@pytest.mark.parametrize("count", [30, 400])
def test_a_webp_takes_many_texts(tmp_path, frames, count):
    texts = {"prompt": "{}", **{f"key {number}": f'"{number}"' for number in range(count)}, "workflow": "[]"}
    with Image.open(save(tmp_path, frames, "webp", metadata=texts)) as picture:
        written = dict(text.split(":", 1) for text in picture.getexif().values())
    assert written.items() <= texts.items()
    assert {"prompt", "workflow"} <= written.keys()
    assert len(written) >= min(count + 2, 240)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(3, 49, 63, 3), (1, 48, 64, 3), (2, 48, 64, 1), (2, 48, 64, 4)])
def test_odd_sizes_single_frames_grey_and_rgba(tmp_path, shape, format):
    path = save(tmp_path, torch.full(shape, 0.5), format, crf=0)
    meta, back = read(path)
    odd = shape[1] == 49
    grown = (64, 50) if odd else (64, 48)
    assert meta["size"] == (grown if format not in ("gif", "webp", "png") or not odd else (63, 49))
    assert len(back) == (1 if format == "webp" else shape[0])  # where equal frames are one that lasts
    assert (back - 0.5).abs().max() < 4.5 / 255


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 8), (8, 64), (64, 8), (32, 48)])
def test_pictures_of_any_size_are_saved(tmp_path, size, format):
    """At some sizes encoders refuse or crash; there, pictures grow."""
    grown = {
        "mp4-h265-10bit": {
            (1, 1): (16, 16), (8, 8): (16, 16), (3, 8): (16, 16), (8, 64): (16, 64), (64, 8): (64, 16),
            (32, 48): (32, 50),
        },
        "mp4-av1": {(1, 1): (2, 10), (8, 8): (8, 10), (3, 8): (4, 10)},
    }  # fmt: skip
    even = tuple(side + side % 2 for side in size)
    usual = size if format in ("gif", "webp", "png") else even
    meta, back = read(save(tmp_path, torch.full((12, *size, 3), 0.3), format, crf=0))
    assert meta["size"][::-1] == grown.get(format, {}).get(size, usual)
    assert (back - 0.3).abs().max() < 4.5 / 255


def test_values_out_of_range_are_clipped(tmp_path):
    frames = torch.full((1, 16, 16, 3), float("nan"))
    frames[:, :, 8:] = 7.0
    frames[:, :4, 8:] = float("inf")
    _, back = read(save(tmp_path, frames, crf=0))
    assert back[:, :, :6].max() < 0.05
    assert back[:, :, 10:].min() > 0.95


@pytest.mark.parametrize(
    ("format", "codec"),
    [("mp4-h264", "aac"), ("mp4-h265-10bit", "aac"), ("mp4-av1", "aac"), ("webm-vp9", "opus"), ("mov-prores", "pcm")],
)
def test_sound_is_cut_to_the_video(tmp_path, frames, format, codec):
    sound = torch.sin(torch.arange(44100) / 20).repeat(2, 1)
    meta, back = read(save(tmp_path, frames, format, fps=20, audio=Audio(sound, 44100)))
    assert meta["audio_codec"].startswith(codec)
    assert len(back) == 10
    assert meta["duration"] == pytest.approx(0.5, abs=0.06)


def test_of_a_long_sound_no_more_is_written_than_is_heard(tmp_path, frames, monkeypatch):
    carried, kept = export._carried, []

    def noted(audio, channels):
        kept.append(audio.waveform.shape[1])
        return carried(audio, channels)

    monkeypatch.setattr(export, "_carried", noted)
    save(tmp_path, frames, fps=20, audio=Audio(torch.zeros(2, 1_000_000), 44100))
    assert kept[0] == 22050 + 1


def test_formats_without_sound_are_saved_without(tmp_path, frames):
    sound = Audio(torch.zeros(1, 44100), 44100)
    assert save(tmp_path, frames, "gif", audio=sound).stat().st_size


@pytest.mark.parametrize("shape", [(0, 44100), (2, 0), (0, 0)])
@pytest.mark.parametrize("format", ["mp4-h264", "webm-vp9", "mov-prores"])
def test_sound_without_channels_or_samples_is_none(tmp_path, frames, format, shape):
    meta, back = read(save(tmp_path, frames, format, audio=Audio(torch.zeros(shape), 44100)))
    assert len(back) == 10
    assert "audio_codec" not in meta


@pytest.mark.parametrize(("format", "channels"), [("webm-vp9", 4), ("mp4-h264", 9), ("mp4-h264", 6)])
def test_sound_of_many_channels_and_of_no_numbers_is_saved(tmp_path, frames, format, channels):
    sound = torch.sin(torch.arange(44100) / 20).repeat(channels, 1)
    sound[:, 100:200] = float("nan")
    meta, _ = read(save(tmp_path, frames, format, audio=Audio(sound, 44100)))
    assert meta["audio_codec"]


@pytest.mark.parametrize(("format", "fps", "most"), [("gif", 60, 50), ("webp", 120, 90), ("mp4-av1", 480, 240)])
def test_no_format_is_told_to_play_faster_than_it_can(tmp_path, frames, format, fps, most):
    """Frames are dropped, so that it takes as long as it should."""
    clip = frames.repeat(6, 1, 1, 1)
    path = save(tmp_path, clip, format, fps=fps)
    if format == "mp4-av1":
        meta, back = read(path)
        assert meta["fps"] == most
        assert len(back) / most == pytest.approx(len(clip) / fps, abs=0.02)
        return
    with Image.open(path) as picture:
        lasts = [(frame.load(), frame.info["duration"])[1] for frame in ImageSequence.Iterator(picture)]
    assert min(lasts) > 10
    assert sum(lasts) / 1000 == pytest.approx(len(clip) / fps, abs=0.05)


@pytest.mark.parametrize(
    ("format", "fps", "count"),
    [("gif", 101, 1), ("gif", 1000, 9), ("webp", 200, 1), ("mp4-av1", 500, 1), ("mp4-av1", 1000, 2)],
)
def test_a_clip_shorter_than_one_frame_keeps_one(tmp_path, frames, format, fps, count):
    _, back = read(save(tmp_path, frames[:count], format, fps=fps, crf=10))
    assert len(back) == 1
    assert min((back[0] - frame).abs().mean() for frame in frames[:count]) < 0.05


def test_pictures_go_into_folders_with_percent_signs(tmp_path, frames):
    folder = tmp_path / "100%d done %05d"
    folder.mkdir()
    save(folder, frames[:2], "png")
    assert len(list((folder / "a").glob("frame_*.png"))) == 2


def test_frames_come_one_at_a_time(tmp_path, frames):
    alive = []

    def stream():
        for frame in frames:
            alive.append(len(alive))
            yield frame.clone()

    sound = Audio(torch.zeros(1, 44100), 44100)
    path = tmp_path / "a.mp4"
    assert save_video(stream(), path, 20, audio=sound, length=10) == 10
    assert len(read(path)[1]) == len(alive) == 10


@pytest.mark.parametrize("format", [name for name, kind in FORMATS.items() if not kind.shown])
def test_a_preview_is_made_of_what_browsers_do_not_show(tmp_path, frames, format):
    folder, preview = tmp_path / "50%d", tmp_path / "preview.mp4"
    folder.mkdir()
    saved = save(folder, frames, format, fps=25, crf=10)
    save_preview(saved.parent if FORMATS[format].pictures else saved, preview, 25, format)
    meta, back = read(preview)
    assert (meta["codec"], meta["size"], meta["fps"], len(back)) == ("h264", (64, 48), 25, 10)
    assert (back - frames).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fps": 0}, "fps = 0"),
        ({"fps": 1e9}, "fps = 1"),
        ({"fps": float("nan")}, "fps = nan"),
        ({"format": "avi"}, "There is no video format avi: choose mp4-h264"),
        ({"frames": torch.zeros(0, 8, 8, 3)}, "no frames"),
        ({"frames": torch.zeros(2, 8, 8)}, r"got one of shape \[8, 8\]"),
        ({"frames": [torch.zeros(8, 8, 3), torch.zeros(7, 8, 3)]}, r"one size, 8×8; got one of \[7, 8, 3\]"),
        ({"frames": [torch.zeros(8, 8, 3), torch.zeros(9, 12, 3)]}, r"one size, 8×8; got one of \[9, 12, 3\]"),
    ],
)
def test_bad_input_is_told(tmp_path, frames, wrong, message):
    given = {"frames": frames, "fps": 30, **wrong}
    with pytest.raises(ExVideoError, match=message):
        save_video(path=tmp_path / "a.mp4", **given)


@pytest.mark.parametrize("format", [name for name, kind in FORMATS.items() if kind.audio])
def test_stereo_stays_stereo(tmp_path, format):
    av = pytest.importorskip("av")
    path = tmp_path / f"a{FORMATS[format].suffix}"
    save_video(torch.rand(10, 16, 16, 3), path, 20, format, audio=Audio(torch.rand(2, 44100) - 0.5, 44100))
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.layout.nb_channels == 2


@pytest.mark.parametrize("crf", [-1, 0, 51, 52])
def test_qualities_that_there_are(crf):
    if 0 <= crf <= 51:
        check_crf(crf)
    else:
        with pytest.raises(ExVideoError, match=f"got crf = {crf}"):
            check_crf(crf)


def test_no_text_of_a_picture_has_a_longer_name_than_a_png_may_hold(tmp_path, frames):
    pattern = str(save(tmp_path, frames[:1], "png", metadata={"n" * 200: "{}", "prompt": "[]"}))
    with Image.open(pattern % 1) as picture:
        assert picture.text == {"n" * 79: "{}", "prompt": "[]"}
