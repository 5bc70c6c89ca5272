"""Long videos whose runs are kept: stopped and gone on with to the same bits, or refused."""

import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.types import ExVideoError

from tests.host.long_runs import RAW, StoppedError


def test_a_run_that_reworks_another_video_is_refused(long, runs):
    video = torch.rand(10, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    second = {"total_frames": 10, "denoise": 0.5, "checkpoint_name": "mine", **RAW}
    made = long(init_video=video, **second)
    assert torch.equal(long(init_video=video, **second), made)
    with pytest.raises(ExVideoError, match="init_video"):
        long(init_video=1 - video, **second)


def test_what_comes_after_the_sampling_of_windows_may_change(long, watched, runs):
    inputs = {"total_frames": 10, "mode": "windows", "checkpoint_name": "mine", **RAW}
    first = long(**inputs)
    watched[1].update(passes=0)
    torch.testing.assert_close(long(**{**inputs, "contrast": 2.0}), 2 * first)
    assert watched[1]["passes"] <= 3


@pytest.mark.parametrize("stop", [4, 8])
def test_a_chain_that_was_stopped_goes_on_to_the_same_bits(long, watched, runs, stop):
    counted = watched[1]
    expected = long(total_frames=14, **RAW)
    # cfg 1: one pass a step, three steps a segment, three segments.
    assert counted["passes"] == 9
    counted.update(passes=0, stop=stop)
    with pytest.raises(StoppedError):
        long(total_frames=14, checkpoint_name="mine", **RAW)
    kept = sorted(path.name for path in (runs / "mine").glob("segment*"))
    assert len(kept) == (stop - 1) // 3
    counted.update(passes=0, stop=None)
    assert torch.equal(long(total_frames=14, checkpoint_name="mine", **RAW), expected)
    assert counted["passes"] == 9 - 3 * len(kept)
    # And once more: all is there.
    counted.update(passes=0)
    assert torch.equal(long(total_frames=14, checkpoint_name="mine", **RAW), expected)
    assert counted["passes"] == 0


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_torn_file_costs_one_segment(long, watched, runs, caplog, damage):
    expected = long(total_frames=14, checkpoint_name="mine", **RAW)
    path = runs / "mine" / "segment_00001.latents"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        data[-5] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    watched[1].update(passes=0)
    assert torch.equal(long(total_frames=14, checkpoint_name="mine", **RAW), expected)
    assert watched[1]["passes"] == 3
    assert ("damaged" in caplog.text) == (damage != "gone")


@pytest.mark.parametrize("foreign", ["swapped", "seed", "size"])
def test_segments_of_another_place_or_run_are_made_again(long, watched, runs, caplog, foreign):
    expected = long(total_frames=14, checkpoint_name="mine", **RAW)
    one, two = (runs / "mine" / f"segment_{number:05}.latents" for number in (1, 2))
    other = {"swapped": {}, "seed": {"seed": 6}, "size": {"width": 128}}[foreign]
    if other:
        long(total_frames=14, checkpoint_name="other", **{**RAW, **other})
        one.write_bytes((runs / "other" / one.name).read_bytes())
    else:
        data = one.read_bytes()
        two.replace(one)
        two.write_bytes(data)
    watched[1].update(passes=0)
    assert torch.equal(long(total_frames=14, checkpoint_name="mine", **RAW), expected)
    assert watched[1]["passes"] == (3 if other else 6)
    assert ("is of another run" if other else "is another part") in caplog.text


@pytest.mark.parametrize("other", [{"steps": 8}, {"width": 128}])
def test_a_step_of_another_run_is_made_again(long, runs, caplog, other):
    inputs = {"total_frames": 8, "mode": "windows", **RAW}
    expected = long(checkpoint_name="mine", **inputs)
    long(checkpoint_name="other", **{**inputs, **other})
    (runs / "mine" / "step.latents").write_bytes((runs / "other" / "step.latents").read_bytes())
    assert torch.equal(long(checkpoint_name="mine", **inputs), expected)
    assert "is of another run" in caplog.text


def test_windows_that_were_stopped_go_on_at_their_step(long, watched, runs):
    counted, inputs = watched[1], {"total_frames": 14, "mode": "windows", **RAW}
    expected = long(**inputs)
    passes = counted["passes"]
    counted.update(passes=0, stop=passes - 1)
    with pytest.raises(StoppedError):
        long(checkpoint_name="mine", **inputs)
    counted.update(passes=0, stop=None)
    assert torch.equal(long(checkpoint_name="mine", **inputs), expected)
    assert counted["passes"] < passes


def test_a_run_of_windows_that_was_stopped_twice_goes_on_at_its_step(long, watched, runs):
    counted, inputs = watched[1], {"total_frames": 6, "mode": "windows", **RAW}
    expected = long(**inputs)
    for stop in (3, 2):  # each time amid the last of three steps
        counted.update(passes=0, stop=stop)
        with pytest.raises(StoppedError):
            long(checkpoint_name="mine", **inputs)
    counted.update(passes=0, stop=None)
    assert torch.equal(long(checkpoint_name="mine", **inputs), expected)
    assert counted["passes"] == 2


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"seed": 6}, "seed was 5 and is 6"), ({"overlap": 3}, "overlap was 2 and is 3"), ({"steps": 4}, "steps was 3")],
)
def test_other_settings_are_refused_with_what_differs(long, watched, runs, changed, told):
    long(total_frames=8, checkpoint_name="mine", **RAW)
    watched[1].update(passes=0)
    with pytest.raises(ExVideoError, match=told):
        long(total_frames=8, checkpoint_name="mine", **{**RAW, **changed})
    assert watched[1]["passes"] == 0


def test_another_model_or_picture_is_refused(run, long, loaded, extension, runs, picture):
    long(total_frames=8, checkpoint_name="mine", **RAW)
    with pytest.raises(ExVideoError, match="picture was another"):
        long(total_frames=8, checkpoint_name="mine", init_image=1 - picture, **RAW)
    almost = picture.clone()
    almost[0, 40, 30, 1] += 1 / 255
    with pytest.raises(ExVideoError, match="picture was another"):
        long(total_frames=8, checkpoint_name="mine", init_image=almost, **RAW)
    half = host.apply_extension(loaded[0], extension, 0.5)
    with pytest.raises(ExVideoError, match="model was"):
        long(total_frames=8, checkpoint_name="mine", model=half, **RAW)
    # Loaded or not, a model is the same one.
    comfy.model_management.unload_all_models()
    long(total_frames=8, checkpoint_name="mine", **RAW)


def test_other_encoders_are_refused(long, loaded, models, runs):
    from exvideo_pack.exvideo_core.tiny import CHECKPOINT

    long(total_frames=8, checkpoint_name="mine", **RAW)
    _, clip_vision, vae = host.load_svd(models / CHECKPOINT)
    long(total_frames=8, checkpoint_name="mine", clip_vision=clip_vision, vae=vae, **RAW)
    next(vae.first_stage_model.parameters()).add_(1)
    with pytest.raises(ExVideoError, match="encoders was"):
        long(total_frames=8, checkpoint_name="mine", vae=vae, **RAW)


def test_the_time_to_go_is_reckoned_from_what_was_sampled(long, watched, runs, caplog):
    caplog.set_level("INFO")
    watched[1].update(stop=10)
    with pytest.raises(StoppedError):
        long(total_frames=18, checkpoint_name="mine", **RAW)
    watched[1].update(stop=None)
    caplog.clear()
    long(total_frames=18, checkpoint_name="mine", **RAW)
    told = [record.message for record in caplog.records if record.message.startswith("ExVideo: segment")]
    assert ["to go" in text for text in told] == [False, False, False, True]


def test_a_folder_of_other_things_is_refused(long, watched, runs):
    folder = runs / "mine"
    folder.mkdir(parents=True)
    (folder / "holiday.jpg").write_text("")
    with pytest.raises(ExVideoError, match="holds other files"):
        long(total_frames=14, checkpoint_name="mine")
    for damaged in ("{ half", "", "null"):
        (folder / "run.json").write_text(damaged)
        with pytest.raises(ExVideoError, match=r"run.json should hold the settings of a long run, but it is damaged"):
            long(total_frames=14, checkpoint_name="mine")
    (runs / "file").write_text("")
    with pytest.raises(ExVideoError, match="cannot be kept"):
        long(total_frames=14, checkpoint_name="file")
    assert watched[1]["passes"] == 0


def test_a_cache_that_goes_by_the_steps_before_is_refused_where_steps_are_kept(long, watched, runs):
    for node in (EasyCacheNode, LazyCacheNode):
        cached = node.execute(watched[0], 0.9, 0.0, 1.0, False).args[0]
        inputs = {"model": cached, "total_frames": 6, "mode": "windows", **RAW}
        with pytest.raises(ExVideoError, match="EasyCache and LazyCache skip steps by those before"):
            long(checkpoint_name="mine", **inputs)
        assert watched[1]["passes"] == 0
        assert not runs.exists()
        assert long(**inputs).isfinite().all()
        watched[1]["passes"] = 0
    # The segments of a chain are sampled from their beginning.
    assert long(checkpoint_name="mine", **{**inputs, "mode": "chain"}).isfinite().all()


def test_a_segment_that_is_not_finite_stops_the_chain_and_is_not_kept(long, watched, runs):
    """As in half precision, where numbers are large; with --fp32-unet the chain is gone on with."""
    inputs, counted = {"total_frames": 14, **RAW}, watched[1]
    expected = long(**inputs)
    counted.update(passes=0, spoil=5)
    with pytest.raises(ExVideoError, match=r"Segment 2 of 3 came out as numbers that are not finite .* --fp32-unet"):
        long(checkpoint_name="mine", **inputs)
    assert counted["passes"] == 6
    counted.update(passes=0, spoil=None)
    assert torch.equal(long(checkpoint_name="mine", **inputs), expected)
    assert counted["passes"] == 6


def test_a_step_that_is_not_finite_is_not_kept(long, watched, runs, caplog):
    inputs, counted = {"total_frames": 6, "mode": "windows", **RAW}, watched[1]
    expected = long(**inputs)
    counted.update(passes=0, spoil=2)
    assert not long(checkpoint_name="mine", **inputs).isfinite().any()
    assert "no longer finite (NaN), and the video will be black" in caplog.text
    counted.update(passes=0, spoil=None)
    assert torch.equal(long(checkpoint_name="mine", **inputs), expected)
    assert counted["passes"] == 2  # from the beginning of the second of three steps
