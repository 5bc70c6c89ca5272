"""The doctor inside a ComfyUI: what it is told there."""

import comfy.model_management
import folder_paths
import pytest
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.doctor.findings import is_wrong
from exvideo_pack.exvideo_core.host import diagnosis
from exvideo_pack.exvideo_core.types import LatentShape


@pytest.fixture
def findings(models):
    return host.diagnose()


def test_all_is_looked_at(findings, models):
    assert not is_wrong(findings)
    told = "\n".join(finding.what for finding in findings)
    for part in (
        "ComfyUI ", "works on cpu", "attention is ", f"SVD checkpoints belong in {folder_paths.models_dir}",
        str(models / "exvideo"), "exvideo_tiny_svd.safetensors is SVD", "ffmpeg is ",
        "exvideo_tiny_128f.safetensors extends to 128 frames", "GiB are free on cpu", "At 512×512", "flow",
    ):  # fmt: skip
        assert part in told


@pytest.mark.parametrize("folder", ["checkpoints", "exvideo"])
def test_a_link_to_nowhere_is_told_and_the_rest_looked_at(models, tmp_path, folder):
    link = models / folder / "gone.safetensors"
    link.symlink_to(tmp_path / "nothing")
    findings = host.diagnose()
    link.unlink()
    (found,) = (finding for finding in findings if "gone.safetensors" in finding.what)
    assert found.state == "warn"
    assert "link to nowhere" in found.what
    assert not is_wrong(findings)
    told = "\n".join(finding.what for finding in findings)
    assert "exvideo_tiny_128f.safetensors extends to 128 frames, and fits exvideo_tiny_svd.safetensors" in told


def test_memory_is_the_plan_of_an_extended_model(findings, loaded, extension):
    """What fits by the report is what a pass at SVD's own width is planned to take."""
    plan = diagnosis.Memory("low", 320).plan([128, 4, 64, 64], 4, loaded[0].load_device, 0)
    (free,) = (finding.what for finding in findings if "GiB are free" in finding.what)
    (first,) = (finding.what for finding in findings if "At 512×512" in finding.what)
    # What is free is told to a tenth; within that, either is right.
    fits = {plan.needed <= (float(free.split()[0]) + rounded) * 2**30 for rounded in (-0.05, 0.05)}
    assert ("128 with low" in first) in fits


def test_all_folders_are_told_and_files_of_other_kinds_left_alone(models):
    other = models / "checkpoints" / "other.ckpt"
    other.touch()
    told = [finding.what for finding in diagnosis._check_models()]
    other.unlink()
    (folders,) = (what for what in told if what.startswith("SVD checkpoints belong in"))
    assert str(models / "checkpoints") in folders.split("; also read: ")[1]
    assert not any(other.name in what for what in told)


def test_what_models_take_now_counts_as_free_and_what_these_will_take_does_not(loaded, like_a_gpu, monkeypatch):
    seen, management, clip = [], comfy.model_management, LatentShape(128, 4, 64, 64)

    def note(_name, free, needed):
        seen.append(free)
        # On a processor the host computes in float32.
        plan = diagnosis.Memory("low", 320).plan(clip, 4, management.get_torch_device(), free)
        assert needed("low", clip) == plan.needed
        return []

    monkeypatch.setattr(diagnosis, "check_memory", note)
    like_a_gpu(64 << 30)
    management.unload_all_models()
    list(diagnosis._check_memory())
    management.load_models_gpu([loaded[0]])
    list(diagnosis._check_memory())
    assert seen[1] - seen[0] == loaded[0].loaded_size() > 0
    taken, parameters = (64 << 30) - seen[0], diagnosis.extended_parameters()
    assert taken in (2 * parameters, 4 * parameters)


def test_the_node_runs_each_time(nodes, run):
    node = nodes["ExVideoDoctor"]
    assert node.fingerprint_inputs() != node.fingerprint_inputs()
    (text,) = run("ExVideoDoctor")
    assert "Nothing is wrong." in text
