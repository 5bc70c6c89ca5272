"""A training's loop without ComfyUI: runs that go on, also where gradients are scaled, and what is kept of others."""

import json
import math
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.amp.grad_scaler import GradScaler

from exvideo_core.extension import Extension
from exvideo_core.post_tuning.cache import Clip
from exvideo_core.post_tuning.engine import Engine
from exvideo_core.post_tuning.recipe import Recipe
from exvideo_core.post_tuning.training import EXTENSION, STATE, Training
from exvideo_core.types import ExVideoError

HIGHEST = 2.0**13
"""The largest scale at which gradients are finite here: three steps from the one that scaling begins with."""


class Scaling(Engine):
    """What scales gradients on a GPU, on the CPU."""

    in_half = True

    def prepare(self, denoise, parameters, recipe):
        prepared = super().prepare(denoise, parameters, recipe)
        self.scaler = GradScaler("cpu")
        return prepared


class Overflowing(torch.autograd.Function):
    """Gradients that are infinite where they are scaled up too far."""

    @staticmethod
    def forward(ctx, x, engine):
        ctx.engine = engine
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (math.inf if ctx.engine.scaler.get_scale() > HIGHEST else 1), None


class Clips:
    identity = "clips"

    def __len__(self):
        return 3

    def __getitem__(self, number):
        latents = torch.randn(4, 4, 2, 2, generator=torch.Generator().manual_seed(number))
        return Clip(latents, torch.zeros(1, 1, 2), 3, "a.mp4")


def training(folder, engine=None, base="", denoise=None, **recipe):
    engine = engine or Scaling()
    weight = torch.nn.Parameter(torch.ones(4))

    def scaled(noised, sigma, *_):
        return Overflowing.apply(weight[None, :, None, None] * noised / (1 + sigma), engine)

    settings = Recipe(**{"steps": 12, "learning_rate": 0.1, "average_every": 100, **recipe})
    start = Extension({"weight": torch.ones(4)}, 4)
    return Training(denoise or scaled, {"weight": weight}, start, Clips(), settings, folder, engine, base)


def stopped(folder, at, **options):
    def stop(progress):
        if progress.step == at:
            raise KeyboardInterrupt

    begun = training(folder, **options)
    begun.load()
    with pytest.raises(KeyboardInterrupt):
        begun.run(stop)


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_run_that_skipped_steps_goes_on_to_the_same_numbers(tmp_path, at):
    """A gradient that is not finite changes nothing but the scale: AdamW counts no step, or has not begun."""
    whole = training(tmp_path / "whole").run()
    stopped(tmp_path / "stopped", at)
    again = training(tmp_path / "stopped")
    assert again.load()
    assert torch.equal(again.run().tensors["weight"], whole.tensors["weight"])
    states = [load_file(tmp_path / run / STATE) for run in ("whole", "stopped")]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


class Cut(Engine):
    """Where something goes wrong, or Ctrl-C comes, when AdamW has just taken a step."""

    def __init__(self, at, cut):
        self.at, self.cut = at, cut

    def step(self):
        norm = super().step()
        if self.taken() == self.at:
            self.cut()
        return norm


@pytest.fixture
def ctrl_c():
    """As in a terminal; in the background a shell may have switched it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_amid_a_step_waits_until_it_is_taken(tmp_path, ctrl_c):
    whole = training(tmp_path / "whole", engine=Engine(), average_every=2).run()
    before = signal.getsignal(signal.SIGINT)
    for at in (4, 5):  # with the average taken in, and without
        cut = training(tmp_path / "cut", Cut(at, partial(signal.raise_signal, signal.SIGINT)), average_every=2)
        cut.load()
        with pytest.raises(KeyboardInterrupt):
            cut.run()
        assert cut.progress.step == at
        assert signal.getsignal(signal.SIGINT) is before
        again = training(tmp_path / "cut", engine=Engine(), average_every=2)
        assert again.load()
        assert again.progress.step == at
    assert torch.equal(again.run().tensors["weight"], whole.tensors["weight"])


@pytest.mark.parametrize("amid", ["step", "average"])
def test_a_step_that_is_half_taken_is_not_kept(tmp_path, amid, monkeypatch):
    """The checkpoint before it stays; from that the run goes on to the same numbers."""

    def fail():
        raise MemoryError

    options = {"average_every": 1, "save_every": 3}
    whole = training(tmp_path / "whole", engine=Engine(), **options).run()
    cut = training(tmp_path / "cut", Cut(5, fail if amid == "step" else lambda: None), **options)
    if amid == "average":
        take_in = cut._take_in
        monkeypatch.setattr(cut, "_take_in", lambda: fail() if cut.progress.step == 5 else take_in())
    with pytest.raises(MemoryError):
        cut.run()
    again = training(tmp_path / "cut", engine=Engine(), **options)
    assert again.load()
    assert again.progress.step == 3
    assert torch.equal(again.run().tensors["weight"], whole.tensors["weight"])


def test_a_training_in_another_thread_than_the_first_is_not_interrupted(tmp_path):
    with ThreadPoolExecutor() as pool:
        learned = pool.submit(training(tmp_path, engine=Engine()).run).result()
    assert not torch.equal(learned.tensors["weight"], torch.ones(4))


MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped")
def test_a_run_that_goes_on_does_not_hold_the_state_that_it_replaces(tmp_path):
    stopped(tmp_path, 3, engine=Engine())
    again = training(tmp_path, engine=Engine())
    assert again.load()
    assert STATE not in MAPS.read_text()


@pytest.mark.parametrize(("before", "after"), [(Engine, Scaling), (Scaling, Engine)])
def test_a_run_goes_on_in_another_precision(tmp_path, before, after):
    stopped(tmp_path, 6, engine=before())
    again = training(tmp_path, engine=after())
    assert again.load()
    again.run()
    assert again.progress.step == 12


def test_a_run_of_another_base_is_another_run(tmp_path):
    stopped(tmp_path, 6, base="one")
    assert training(tmp_path, base="one").load()
    assert not training(tmp_path, base="other").load()
    assert not training(tmp_path, base="one", learning_rate=0.2).load()


def test_a_run_of_other_settings_is_told_and_kept_when_another_takes_its_place(tmp_path, caplog):
    """The warning says what differs; before the other run has something of its own, nothing is moved."""
    stopped(tmp_path, 6, base="one")
    state, extension = tmp_path / STATE, tmp_path / EXTENSION
    extension.write_bytes(b"of the first run")
    first = state.read_bytes()
    assert training(tmp_path, base="one").load()
    assert "begins anew" not in caplog.text
    other = training(tmp_path, base="other", learning_rate=0.2, save_every=5)
    assert not other.load()
    assert f"begins anew: the run in {tmp_path} is of other settings: learning_rate, the base." in caplog.text
    assert "training.before.state and extension.before.safetensors" in caplog.text
    assert (state.read_bytes(), sorted(tmp_path.iterdir())) == (first, [extension, state])
    other.run()
    assert (tmp_path / "training.before.state").read_bytes() == first
    assert (tmp_path / "extension.before.safetensors").read_bytes() == b"of the first run"
    assert training(tmp_path, base="other", learning_rate=0.2).load()
    # The state beside it is only of the run before, however often the new one is kept.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "extension.before.safetensors", "training.before.state", STATE,
    ]  # fmt: skip


def test_a_run_that_was_set_aside_is_gone_on_with_when_its_settings_come_back(tmp_path, caplog):
    """As after a mistake that was noticed late; the two change places, and neither is lost."""
    stopped(tmp_path, 6, base="one")
    names = [tmp_path / name for name in (STATE, EXTENSION)]
    before = [tmp_path / name for name in ("training.before.state", "extension.before.safetensors")]
    names[1].write_bytes(b"of the first run")
    stopped(tmp_path, 3, base="other")
    names[1].write_bytes(b"of the second run")
    second = names[0].read_bytes()
    caplog.clear()

    first = training(tmp_path, base="one")
    assert first.load()
    assert (first.progress.step, caplog.text) == (6, "")
    assert names[0].read_bytes() == second  # nothing is moved until there is something to keep
    first.run()
    assert [path.read_bytes() for path in (before[0], names[1], before[1])] == [
        second, b"of the first run", b"of the second run",
    ]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == sorted(names + before)
    expected = training(tmp_path / "elsewhere", base="one")
    for key, tensor in expected.run().tensors.items():
        assert torch.equal(first.extension().tensors[key], tensor)
    assert training(tmp_path, base="other").load()


def test_a_run_in_the_place_of_one_set_aside_is_told(tmp_path, caplog):
    for base in ("one", "two"):
        stopped(tmp_path, 3, base=base)
    assert "in the place of the one before it" not in caplog.text
    assert not training(tmp_path, base="three").load()
    assert "extension.before.safetensors, in the place of the one before it." in caplog.text


def test_an_extension_without_a_state_is_not_written_over(tmp_path, caplog):
    """Whoever removes a state, which is large, or damaged, means to keep what was learned."""
    (tmp_path / EXTENSION).write_bytes(b"of a run that is over")
    other = training(tmp_path)
    assert not other.load()
    assert f"the run in {tmp_path} has no training.state to go on from. It will stay there as" in caplog.text
    other.set_aside()
    assert (tmp_path / "extension.before.safetensors").read_bytes() == b"of a run that is over"
    assert not (tmp_path / EXTENSION).exists()


def test_of_two_other_runs_the_longer_one_stays(tmp_path, caplog):
    """Two short tries with other settings would else be the end of a long run."""
    stopped(tmp_path, 6, base="long")
    (tmp_path / EXTENSION).write_bytes(b"of the long run")
    long = (tmp_path / STATE).read_bytes()
    for base in ("short", "shorter"):
        stopped(tmp_path, 2, base=base)
        (tmp_path / EXTENSION).write_bytes(b"of a short run")
    assert (
        "It will be replaced, for it has fewer steps than the one before it, which stays as "
        "training.before.state and extension.before.safetensors." in caplog.text
    )
    assert (tmp_path / "training.before.state").read_bytes() == long
    assert (tmp_path / "extension.before.safetensors").read_bytes() == b"of the long run"
    assert training(tmp_path, base="shorter").load()
    again = training(tmp_path, base="long")
    assert again.load()
    assert again.progress.step == 6


def test_an_extension_without_a_state_takes_no_other_run_s_place(tmp_path, caplog):
    stopped(tmp_path, 3, base="one")
    (tmp_path / EXTENSION).write_bytes(b"one")
    stopped(tmp_path, 3, base="two")
    (tmp_path / EXTENSION).write_bytes(b"two")
    (tmp_path / STATE).unlink()
    other = training(tmp_path, base="three")
    assert not other.load()
    assert "It will stay there as extension.before2.safetensors." in caplog.text
    other.set_aside()
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    assert kept == {"extension.before.safetensors": b"one", "extension.before2.safetensors": b"two"}
    assert training(tmp_path, base="one").load()


def test_processes_that_find_other_runs_are_told(tmp_path):
    """Each on a disk of its own, of which the first alone has the state."""

    class OneOfTwo(Engine):
        def mean(self, value):
            return value / 2

    stopped(tmp_path, 3, engine=OneOfTwo())
    with pytest.raises(ExVideoError, match="find different runs to go on with: give all of them the same --output"):
        training(tmp_path, engine=OneOfTwo()).load()


def test_a_state_of_an_older_version_is_gone_on_with(tmp_path):
    """Which says neither what base it is of nor how many steps AdamW took: as many as there were."""
    stopped(tmp_path, 6, engine=Engine())
    with safe_open(tmp_path / STATE, framework="pt") as file:
        texts = file.metadata()
    recipe = json.loads(texts["recipe"])
    recipe.pop("base")
    older = {key: texts[key] for key in ("step", "losses", "scaler")} | {"recipe": json.dumps(recipe)}
    save_file(load_file(tmp_path / STATE), tmp_path / STATE, older)
    again = training(tmp_path, engine=Engine(), base="one")
    assert again.load()
    assert (again.progress.step, again._engine.taken()) == (6, 6)


def test_a_file_that_is_no_state_is_told(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / STATE)
    with pytest.raises(ExVideoError, match="no state of a post-tuning: remove it"):
        training(tmp_path, engine=Engine()).load()


@pytest.mark.parametrize(("at", "told"), [(0, False), (2, True)])
def test_where_a_loss_is_no_number_the_advice_loses_nothing(tmp_path, at, told):
    passes = []

    def diverging(noised, *_):
        passes.append(noised)
        return noised * (torch.nan if len(passes) > at else 1) * weight

    weight = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(ExVideoError, match=f"stopped at step {at + 1}: its loss") as raised:
        training(tmp_path, engine=Engine(), denoise=diverging).run()
    assert "on a clip of a.mp4" in str(raised.value)
    assert ("Choose another run_name or --output as well" in str(raised.value)) == told
    assert (str(tmp_path) in str(raised.value)) == told


def test_where_a_loss_is_no_number_processes_that_share_keep_what_they_learned(tmp_path):
    """All of them come to it at once, so each brings its part."""

    class Sharing(Engine):
        spread = True

    passes = []

    def diverging(noised, *_):
        passes.append(noised)
        return noised * (torch.nan if len(passes) > 2 else 1) * weight

    weight = torch.nn.Parameter(torch.ones(()))
    run = training(tmp_path, engine=Sharing(), denoise=diverging)
    with pytest.raises(ExVideoError, match=f"what was learned before is in {tmp_path}, and stays there"):
        run.run()
    assert run.together
    again = training(tmp_path, engine=Sharing())
    assert again.load()
    assert again.progress.step == 2


def test_a_gradient_that_no_scale_mends_ends_the_run(tmp_path):
    """Half precision makes gradients infinite now and then; one that is always so would go on for days."""
    engine = Scaling()

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.nan

    def denoise(noised, sigma, *_):
        return Broken.apply(noised * next(iter(run._parameters.values()))[None, :, None, None])

    run = training(tmp_path, engine=engine, denoise=denoise, steps=200)
    with pytest.raises(ExVideoError, match=r"stopped at step \d+: its gradient is no longer a number"):
        run.run()
    assert run.progress.step < 50


def test_what_is_learned_is_the_running_average():
    """Of few, as long as there are few; before there are two, the parameters themselves."""
    run, seen = training(None, Engine(), steps=3, average_every=1, average=0.4), []
    learned = run.run(lambda _: seen.append(run._parameters["weight"].detach().clone()))
    first, second, third = seen
    torch.testing.assert_close(learned.tensors["weight"], 0.4 * (first / 3 + second * 2 / 3) + 0.6 * third)
    run = training(None, Engine(), steps=3, average_every=2)
    assert torch.equal(run.run().tensors["weight"], run._parameters["weight"].detach())


def test_clips_of_one_step_count_as_one_on_average():
    def losses(steps, **recipe):
        run = training(None, Engine(), steps=steps, learning_rate=1e-9, **recipe)
        run.run()
        return run.progress.losses

    single, pairs = losses(6), losses(3, accumulate=2)
    assert pairs == pytest.approx([(one + other) / 2 for one, other in zip(single[::2], single[1::2], strict=True)])
