"""Clips for post-tuning, out of video files of all kinds."""

import subprocess
import sys

import imageio_ffmpeg
import pytest
import torch

from dev.videos import damage, draw_video
from exvideo_core.post_tuning.clips import read_clips
from exvideo_core.types import ClipShape, ExVideoError

SHAPE = ClipShape(12, 48, 64)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", ["-pix_fmt", "yuv420p"]), ("a.webm", []), ("a.mkv", ["-c:v", "ffv1"]), ("a.avi", ["-c:v", "mjpeg"])],
)
def test_a_video_becomes_clips_of_the_wanted_size(tmp_path, name, options):
    clips = list(read_clips(draw_video(tmp_path / name, *options), SHAPE, 30))
    assert [tuple(clip.shape) for clip in clips] == [(12, 48, 64, 3)] * 2  # 30 frames: two clips, six frames left
    assert clips[0].dtype == torch.uint8


def test_the_centre_is_cropped_and_proportions_stay(tmp_path):
    """A red, a green and a blue third, twice as wide as wanted: the green is left, and a quarter of each other."""
    source = "color=red:size=60x60,drawbox=x=20:w=20:h=60:color=lime:t=fill,drawbox=x=40:w=20:h=60:color=blue:t=fill"
    video = draw_video(
        tmp_path / "wide.mkv", "-vf", "scale=240:60:flags=neighbor,setsar=1", "-c:v", "ffv1", source=source
    )
    (clip, *_) = read_clips(video, ClipShape(2, 32, 64), 25)
    row = clip[0, 16].int()
    red, green, blue = (int((row[:, c] > 128).sum()) for c in range(3))
    assert abs(red - green / 4) <= 2
    assert abs(red - blue) <= 2
    assert 38 <= green <= 46


@pytest.mark.parametrize(("aspect", "ratio"), [("2/1", 2), ("1/2", 0.5), ("0/1", 1)])
def test_pixels_that_are_not_square_become_so(tmp_path, aspect, ratio):
    """A disc is seen as one: pixels of DV, DVDs and HDV are shown wider, or higher. If nothing is said, they stay."""
    disc = f"nullsrc=size=120x120,geq=lum='255*lt(hypot((X-60)*{ratio},Y-60),25)':cb=128:cr=128"
    video = draw_video(tmp_path / "disc.mkv", "-vf", f"setsar={aspect}", "-c:v", "ffv1", source=disc)
    (clip, *_) = read_clips(video, ClipShape(2, 64, 64), 25)
    seen = clip[0, ..., 0] > 128
    assert abs(int(seen[32].sum()) - int(seen[:, 32].sum())) <= 2


@pytest.mark.parametrize("codec", [["-c:v", "mpeg2video", "-q:v", "1"], ["-c:v", "libx264", "-crf", "1"]])
def test_half_pictures_become_whole_ones(tmp_path, codec):
    """A bar that goes to the right, by tape, DVD or 1080i: every second row shows it further on, as if torn."""
    bar = "color=black:size=160x64:rate=60,format=yuv420p,geq=lum='255*between(X-2*N,20,60)':cb=128:cr=128"
    torn = ["-vf", "interlace=scan=tff:lowpass=off", *codec, "-flags", "+ildct+ilme"]
    video = draw_video(tmp_path / "torn.mkv", *torn, source=bar)
    (clip, *_) = read_clips(video, ClipShape(12, 64, 160), 30)
    rows = clip[:, 8:-8, :, 1].float()  # filters have less to go by at the border
    assert float((rows[:, 1:] - rows[:, :-1]).abs().mean()) < 1
    middle = (rows > 128).float().mul(torch.arange(160.0)).sum(-1) / (rows > 128).sum(-1)
    assert middle.mean(1).diff().tolist() == pytest.approx([4.0] * 11, abs=0.6)


def test_frames_are_repeated_or_left_out_for_the_wanted_rate(tmp_path):
    """Of a video whose brightness grows with its frame number, at three times and at half the rate."""
    source = "nullsrc=size=32x32:rate=10,geq=lum='16+4*N':cb=128:cr=128"
    video = draw_video(tmp_path / "ramp.mkv", "-c:v", "ffv1", source=source, seconds=4)
    slow, fast = (next(read_clips(video, ClipShape(16, 32, 32), fps))[:, 16, 16, 0].float() for fps in (5, 30))
    steps = [float(values.diff().mean()) for values in (slow, fast)]
    assert steps[0] == pytest.approx(6 * steps[1], rel=0.15)


def test_clips_begin_with_the_first_picture(tmp_path):
    """Also where the sound begins a second earlier: what is shown then, if anything, is no picture of the video."""
    video = draw_video(tmp_path / "a.mkv", "-c:v", "ffv1")
    late = tmp_path / "late.mkv"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "sine=d=2", "-itsoffset", "1"]
    subprocess.run([*command, "-i", str(video), "-map", "0:a", "-map", "1:v", "-c:v", "copy", str(late)], check=True)
    expected, found = list(read_clips(video, SHAPE, 30)), list(read_clips(late, SHAPE, 30))
    assert len(found) == len(expected) == 2
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.skipif(sys.platform == "win32", reason="by a script of the shell")
@pytest.mark.parametrize("known", ["-fps_mode", "-vsync"])
def test_ffmpeg_is_told_so_in_its_own_words(tmp_path, monkeypatch, known):
    """Before 5.1 it did not know the option's name of today."""
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\nif [ $1 = -h ]; then echo '{known}'; else echo \"told: $*\" >&2; exit 1; fi\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(ExVideoError, match=rf"told: .* {known} passthrough "):
        list(read_clips(tmp_path / "a.mp4", SHAPE, 30))


def test_what_is_no_video_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("not a video")
    draw_video(tmp_path / "short.mp4", seconds=0.2)
    whole = draw_video(tmp_path / "whole.mp4", seconds=2)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ExVideoError, match="cannot be read as a video"):
        list(read_clips(tmp_path / "a.txt", SHAPE, 30))
    with pytest.raises(ExVideoError, match="has 6 frames at 30 a second, and a clip needs 12"):
        list(read_clips(tmp_path / "short.mp4", SHAPE, 30))
    with pytest.raises(ExVideoError, match="cannot be read as a video"):
        list(read_clips(tmp_path / "cut.mp4", SHAPE, 30))


def test_a_damaged_video_is_told_after_its_clips(tmp_path):
    """ffmpeg repairs what it can, ends as if nothing were wrong, and its repairs are smears."""
    broken = damage(draw_video(tmp_path / "a.mp4", "-pix_fmt", "yuv420p", seconds=2))
    whole = draw_video(tmp_path / "whole.mkv", "-c:v", "ffv1", seconds=2).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    for video, words in ((broken, r"[^\[]+"), (tmp_path / "cut.mkv", "File ended prematurely")):
        clips = read_clips(video, SHAPE, 30)
        next(clips)
        with pytest.raises(ExVideoError, match=rf"^it is damaged \(ffmpeg: {words}\)$"):
            list(clips)


def test_what_ffmpeg_says_of_whole_videos_is_no_damage(tmp_path):
    """Streams put end to end, and a video whose beginning an editor left out without encoding it anew."""
    stream = draw_video(tmp_path / "a.ts", "-pix_fmt", "yuv420p", "-c:v", "libx264").read_bytes()
    (tmp_path / "joined.ts").write_bytes(2 * stream)
    gops = "open-gop=1:keyint=20:bframes=3"
    video = draw_video(tmp_path / "a.mp4", "-pix_fmt", "yuv420p", "-x264-params", gops, seconds=3)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-ss", "1.1", "-i", str(video), "-c", "copy"]
    subprocess.run([*command, str(tmp_path / "edited.mp4")], check=True)
    assert len(list(read_clips(tmp_path / "joined.ts", SHAPE, 30))) == 5
    assert len(list(read_clips(tmp_path / "edited.mp4", SHAPE, 30))) == 4


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_a_recording_that_begins_in_the_middle_is_whole_from_its_first_picture_on(tmp_path, share):
    """As of television in HEVC: of what came before, ffmpeg says the same as of damage."""
    params = "keyint=30:min-keyint=30:log-level=0"
    video = draw_video(
        tmp_path / "a.ts", "-pix_fmt", "yuv420p", "-c:v", "libx265", "-x265-params", params, seconds=4,
        source="testsrc2=size=160x120:rate=30",
    )  # fmt: skip
    (whole,) = read_clips(video, ClipShape(120, 48, 64), 30)
    data, packet = video.read_bytes(), 188
    begin = int(len(data) // packet * share) * packet
    # What says which stream is which comes again and again; here, first.
    video.write_bytes(data[: 3 * packet] + data[begin:])
    seen = torch.cat(list(read_clips(video, SHAPE, 30)))
    # Every 30th frame is a picture by itself.
    assert any(torch.equal(seen, whole[first : first + len(seen)]) for first in (30, 60))
    video.write_bytes(data + data[begin:])  # the same gap later on
    with pytest.raises(ExVideoError, match="it is damaged"):
        list(read_clips(video, SHAPE, 30))


def test_sound_alone_is_told_also_with_a_cover(tmp_path):
    sound = draw_video(tmp_path / "a.m4a", source="sine")
    cover = draw_video(tmp_path / "a.png", "-frames:v", "1", "-update", "1")
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        str(sound),
        "-i",
        str(cover),
        "-map",
        "0",
        "-map",
        "1",
    ]
    subprocess.run([*command, "-c", "copy", "-disposition:v", "attached_pic", str(tmp_path / "b.m4a")], check=True)
    for name in ("a.m4a", "b.m4a"):
        with pytest.raises(ExVideoError, match="there is no video in it"):
            list(read_clips(tmp_path / name, SHAPE, 30))


@pytest.mark.parametrize(
    ("size", "tag", "matrix"),
    [
        ("1280x720", "unknown", "bt709"),
        ("1280x536", "unknown", "bt709"),  # a film in its own proportions
        ("720x1280", "unknown", "bt709"),
        ("720x576", "unknown", "bt601"),
        ("1280x720", "smpte170m", "bt601"),
        ("720x576", "bt709", "bt709"),
    ],
)
def test_colours_are_those_that_players_show(tmp_path, size, tag, matrix):
    """A video that does not say how its colours became numbers is taken for what its size tells."""
    made = f"scale=out_color_matrix={matrix}:out_range=tv,format=yuv444p,setparams=colorspace={tag}"
    video = draw_video(
        tmp_path / "a.mkv", "-vf", made, "-c:v", "ffv1", source=f"color=0x20C040:size={size}", seconds=0.1
    )
    (clip, *_) = read_clips(video, ClipShape(2, 64, 64), 25)
    assert clip[0, 32, 32].tolist() == pytest.approx([0x20, 0xC0, 0x40], abs=3)


@pytest.mark.parametrize("tags", ["color_primaries=bt2020:colorspace=bt2020nc", "color_primaries=bt2020", "range=tv"])
@pytest.mark.parametrize(("curve", "white"), [("arib-std-b67", 0.75), ("smpte2084", 0.58)])
def test_hdr_is_seen_as_on_a_usual_screen(tmp_path, curve, white, tags):
    """White paper and a grey card, 18 % as bright, as HLG and PQ have them (ITU-R BT.2408): 38 % in both. On a usual
    screen the card is at 41 % of the brightest; what HDR has above white is left room for."""
    for share, expected in ((white, 0.86), (0.38, 0.42), (0.0, 0.0)):
        grey = f"nullsrc=size=64x64:rate=30,format=yuv420p10le,geq=lum='64+876*{share}':cb=512:cr=512"
        tagged = f"setparams=color_trc={curve}:{tags}"
        video = draw_video(tmp_path / "a.mkv", "-vf", tagged, "-c:v", "ffv1", source=grey, seconds=0.2)
        (clip, *_) = read_clips(video, ClipShape(2, 32, 32), 30)
        assert clip[0, 16, 16].tolist() == pytest.approx([round(255 * expected)] * 3, abs=4)


@pytest.mark.skipif(sys.platform == "win32", reason="by a script of the shell")
def test_hdr_without_filters_for_it_is_learned_as_it_is_and_told_once(tmp_path, monkeypatch, caplog):
    grey = "nullsrc=size=64x64:rate=30,format=yuv420p10le,geq=lum='64+876*0.75':cb=512:cr=512"
    tagged = ["-vf", "setparams=color_trc=arib-std-b67", "-c:v", "ffv1"]
    video = draw_video(tmp_path / "a.mkv", *tagged, source=grey, seconds=0.2)
    plain = tmp_path / "ffmpeg"
    plain.write_text(f'#!/bin/sh\n"{imageio_ffmpeg.get_ffmpeg_exe()}" "$@" | sed "s/zscale/zscal_/"\n')
    plain.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(plain))
    for _ in range(2):
        (clip, *_) = read_clips(video, ClipShape(2, 32, 32), 30)
        assert clip[0, 16, 16].tolist() == pytest.approx([191] * 3, abs=3)
    assert caplog.text.count("lacks the filters zscale and tonemap") == 1
