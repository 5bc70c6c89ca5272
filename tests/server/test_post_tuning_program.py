"""Post-tuning from the command line: killed and gone on with, and in two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dev.environment import ROOT
from dev.inside import host_path
from dev.server import free_port
from dev.videos import draw_video
from exvideo_core.tiny import CHECKPOINT, write_tiny_model

pytestmark = pytest.mark.slow

TWO = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port={port}")
# What `accelerate config` may have been told about other programs: to the launcher, and as processes find it.
FOREIGN = ("--mixed_precision=bf16", "--gradient_accumulation_steps=4")
FOUND = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes=2", "--main_process_port={port}", *FOREIGN)
FSDP, ZERO_2 = (*ACCELERATE, "--use_fsdp"), (*ACCELERATE, "--use_deepspeed", "--zero_stage=2")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The command with all that it needs but how long and where to; both clips of the videos have different numbers."""
    folder = tmp_path_factory.mktemp("program")
    write_tiny_model(folder)
    for source in ("testsrc", "testsrc2", "rgbtestsrc"):
        draw_video(folder / "videos" / f"{source}.mp4", source=f"{source}=size=64x64:rate=30", seconds=0.3)
    return [
        "-m", "exvideo_core.post_tuning", f"--checkpoint={folder / CHECKPOINT}", f"--videos={folder / 'videos'}",
        "--frames=6", "--size=64x64", "--learning-rate=1e-4", "--save-every=1", "--average-every=2",
        # So that both count in a few steps.
        "--clip-norm=0.05", "--weight-decay=1",
    ]  # fmt: skip


def start(program, output, *options, launched=()):
    launcher = [word.format(port=free_port()) for word in launched]
    command = [sys.executable, *launcher, *program, f"--output={output}", *options, "--", "--cpu"]
    # One thread each, so that all sums are in the same order.
    env = {**os.environ, "COMFYUI_PATH": str(host_path()), "OMP_NUM_THREADS": "1", **(FOUND if launched else {})}
    if launched != ZERO_2 and (launched != TWO or torch.cuda.is_available()):
        # What accelerate knows no DeepSpeed with, and what goes without saying where there is no GPU.
        env["ACCELERATE_USE_CPU"] = "true"
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process):
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def test_a_killed_run_goes_on_to_the_same_numbers(program, tmp_path):
    whole = start(program, tmp_path / "whole", "--steps=5")
    said = finished(whole)
    assert "step 5 of 5" in said
    killed = start(program, tmp_path / "killed", "--steps=5")
    state = tmp_path / "killed" / "training.state"
    until = time.monotonic() + 200
    while not state.exists():
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with safe_open(state, framework="pt") as file:
        assert 1 <= int(file.metadata()["step"]) <= 5
    assert "goes on at step" in finished(start(program, tmp_path / "killed", "--steps=5"))
    same(tmp_path / "whole", tmp_path / "killed")


@pytest.fixture(scope="module")
def one(program, tmp_path_factory):
    """What one process learns that takes two clips a step."""
    folder = tmp_path_factory.mktemp("one")
    finished(start(program, folder, "--steps=3", "--accumulate=2"))
    return folder


def test_two_processes_learn_as_one(program, one, tmp_path):
    said = finished(start(program, tmp_path / "two", "--steps=3", launched=TWO))
    assert said.count("step 3 of 3") == 1
    same(one, tmp_path / "two", tolerance=1e-6)


HAS_DEEPSPEED = find_spec("deepspeed") is not None
DEEPSPEED = pytest.mark.skipif(not HAS_DEEPSPEED, reason="DeepSpeed is on Linux only")


@pytest.mark.parametrize(
    ("begun", "gone_on"),
    [
        # Where there is DeepSpeed, the other two begin and go on in every way.
        pytest.param(TWO, FSDP, id="--shard, then FSDP", marks=[pytest.mark.long] if HAS_DEEPSPEED else []),
        pytest.param(TWO, ZERO_2, id="--shard, then ZeRO", marks=DEEPSPEED),
        pytest.param(ZERO_2, FSDP, id="ZeRO, then FSDP", marks=DEEPSPEED),
    ],
)
def test_two_processes_that_share_moments_learn_the_same(program, one, tmp_path, begun, gone_on):
    """Also where a run was stopped, and gone on with; by accelerate's own flags, too."""
    options = ("--shard",) if begun == TWO else ()
    # Two, for one is what DeepSpeed has counted when it has made room for the moments.
    finished(start(program, tmp_path / "shared", "--steps=2", *options, launched=begun))
    said = finished(start(program, tmp_path / "shared", "--steps=3", launched=gone_on))
    assert said.count("step 3 of 3") == 1
    assert "goes on at step 2" in said
    same(one, tmp_path / "shared", tolerance=1e-6)


def same(one, other, tolerance=0.0):
    texts, states = zip(*(read_state(folder / "training.state") for folder in (one, other)), strict=True)
    assert json.loads(texts[1]["losses"]) == pytest.approx(json.loads(texts[0]["losses"]), rel=1e3 * tolerance, abs=0)
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[0].items():
        torch.testing.assert_close(states[1][key], tensor, rtol=0, atol=tolerance)
    for moment in ("exp_avg.", "exp_avg_sq."):  # far smaller than a parameter
        first, second = (
            torch.cat([tensor.flatten() for key, tensor in state.items() if key.startswith(moment)]) for state in states
        )
        assert (second - first).norm() <= 1e2 * tolerance * first.norm()
    extensions = [load_file(folder / "extension.safetensors") for folder in (one, other)]
    for key, tensor in extensions[0].items():
        torch.testing.assert_close(extensions[1][key], tensor, rtol=0, atol=max(tolerance, 0) * 1e3)


def read_state(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps=1", "--size=big"], "A size is width x height in pixels, such as 512x512; got big."),
        (["--steps=1", "--videos=/nowhere"], "There is no folder /nowhere"),
        (["--steps=1", "--save-every=0"], "Post-tuning needs at least 1 for save_every, got 0."),
        (["--steps=1", f"--output={__file__}"], f"A training cannot be kept in {__file__} ("),
        (["--steps=1", "--shard"], "start it by accelerate launch or torchrun."),
    ],
)
def test_bad_input_ends_in_a_sentence(program, tmp_path, options, message):
    process = start(program, tmp_path / "run", *options)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_an_extension_that_cannot_be_written_is_an_error(program, tmp_path):
    (tmp_path / "extension.safetensors").mkdir()
    process = start(program, tmp_path, "--steps=1")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("extension.safetensors could not be written")
    assert "Traceback" not in said
    assert "The extension is" not in said


def test_without_a_comfyui_it_says_how_to_find_one(tmp_path):
    command = [sys.executable, "-m", "exvideo_core.post_tuning"]
    options = [f"--{name}={tmp_path}" for name in ("checkpoint", "videos", "output")]
    env = {**os.environ, "COMFYUI_PATH": str(tmp_path)}
    done = subprocess.run([*command, *options, "--steps=1"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("No ComfyUI was found: put this pack into its custom_nodes folder")
