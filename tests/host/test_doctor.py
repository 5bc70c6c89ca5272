"""The doctor inside a ComfyUI: what it is told there."""

import folder_paths
import pytest
from exvideo_pack.exvideo_core import host
from exvideo_pack.exvideo_core.doctor.findings import is_wrong
from exvideo_pack.exvideo_core.host import diagnosis


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


def test_the_node_runs_each_time(nodes, run):
    node = nodes["ExVideoDoctor"]
    assert node.fingerprint_inputs() != node.fingerprint_inputs()
    (text,) = run("ExVideoDoctor")
    assert "Nothing is wrong." in text
