"""Where the tests find a ComfyUI, and the list of errors against the authors' code.

Core tests need neither. Host, install and server tests run on a real ComfyUI: the one at COMFYUI_PATH, else the one
that `python -m dev.environment` sets up. Where there is none the run fails, unless it was told EXVIDEO_HOST=none.
"""

from __future__ import annotations

import os

import pytest

from dev.inside import become_host, host_path

HOST = host_path()
WITHOUT_HOST = os.environ.get("EXVIDEO_HOST") == "none"
collect_ignore = ["host", "install", "server"] if WITHOUT_HOST else []


FIRST = (
    "host/test_trained.py", "server/test_post_tuning_program.py", "host/test_parity.py", "host/test_train_tiny.py",
    "host/test_memory.py", "server/test_batch_many.py", "server/test_batch.py", "host/test_seams.py",
    "host/test_post_tuning.py", "host/test_long.py", "host/test_gradient.py", "host/test_layouts.py",
    "host/test_precision.py", "server/test_server.py", "server/test_portable.py", "server/test_demo.py",
)  # fmt: skip
"""The files that take longest, in that order: begun last, they would keep one process waiting for another."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get("/".join(item.path.parts[-2:]), len(order)))


def pytest_report_header() -> str:
    left_out = "none (EXVIDEO_HOST=none: tests/host, tests/install and tests/server are left out)"
    return f"ComfyUI: {left_out if WITHOUT_HOST else HOST}"


# On import: the conftest files below this one import the pack.
if not WITHOUT_HOST:
    if not (HOST / "main.py").is_file():
        pytest.exit(f"There is no ComfyUI at {HOST}: run `make host`, set COMFYUI_PATH, or HOST=none.", returncode=1)
    become_host("--cpu")


class Parity:
    """Errors against the authors' code: each held to its bound, the worst of every stage told after the run."""

    def __init__(self):
        self.stages = {}

    def __call__(self, stage, case, ours, theirs, bound):
        """Hold the relative error ‖ours − theirs‖ / ‖theirs‖ to a bound."""
        assert ours.shape == theirs.shape
        assert theirs.std() > 1e-3, "the oracle's output hardly varies: nothing is compared"
        error = ((ours - theirs).norm() / theirs.norm()).item()
        self.stages.setdefault((stage, bound), {})[case] = error
        assert error <= bound, f"{stage}, {case}: relative error {error:.1e}, bound {bound:.0e}"

    def hand_over(self):
        """For another process: what its `take_over` takes."""
        return [[stage, bound, errors] for (stage, bound), errors in self.stages.items()]

    def take_over(self, handed):
        for stage, bound, errors in handed:
            self.stages.setdefault((stage, bound), {}).update(errors)

    def report(self):
        for (stage, bound), errors in self.stages.items():
            case, worst = max(errors.items(), key=lambda item: item[1])
            yield f"{stage:<62} {worst:.1e}, bound {bound:.0e}; {len(errors)} cases, the worst: {case}"


PARITY = Parity()


@pytest.fixture
def parity():
    return PARITY


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of several processes, of which another reports
        session.config.workeroutput["parity"] = PARITY.hand_over()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    PARITY.take_over(getattr(node, "workeroutput", {}).get("parity", []))


def pytest_terminal_summary(terminalreporter):
    if PARITY.stages:
        terminalreporter.section("relative errors on the CPU: float32 against the authors' code, or as named")
        terminalreporter.write_line("\n".join(PARITY.report()))
