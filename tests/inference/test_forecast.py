"""Before its long part a run says what it will take, and what to change where that is in vain."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import log
from types import SimpleNamespace
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_fe as fe
from ppl_fe.inference import adjusted
from ppl_fe.inference.run import progress
from ppl_fe.inference.run.forecast import Prospect, of_relaxation, of_trajectories
from ppl_fe.inference.run.progress import TIMED, Watch
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.step.trajectories import Trajectories
from ppl_fe.inference.targets import Targets
from ppl_fe.inference.warmup.step_size import Adaptation


class SaidError(Exception):
    """Raised in place of the long part."""


@pytest.fixture
def seconds_a_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set a clock by which every step takes so long, and end a run where its line would come."""

    def set_clock(seconds: float) -> None:
        ticks = iter(range(1, 10**9))
        clock = SimpleNamespace(time=time.time, perf_counter=lambda: seconds * next(ticks))
        monkeypatch.setattr(progress, "time", clock)
        say = Watch.say

        def say_and_stop(watch: Watch, sampler: str, prospect: Prospect, *, last: bool) -> None:
            say(watch, sampler, prospect, last=last)
            raise SaidError

        monkeypatch.setattr(Watch, "say", say_and_stop)

    return set_clock


def normal() -> None:
    pyro.sample("w", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))


def said_by(call: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SaidError):
        call()
    return capsys.readouterr().err.replace("\r", "\n")


def test_a_run_of_given_length_says_its_time_after_fifty_steps(
    seconds_a_step: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    seconds_a_step(0.001)
    kernel = fe.SGLD(normal, step_size=0.1)
    said = said_by(lambda: fe.sample(kernel, num_samples=40_050, warmup_steps=0), capsys)
    assert "SGLD: about 40 s, 40,000 steps a chain" in said
    assert "about" not in said_by(lambda: fe.sample(kernel, num_samples=10_000), capsys)


def test_trajectories_say_it_as_early(
    seconds_a_step: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """After 51 of at least 120 of warm-up, or of slow ones after ten seconds."""
    seconds_a_step(0.06)
    said = said_by(lambda: fe.sample(normal), capsys)
    assert "MALT: about 60 s, 1,100 trajectories a chain" in said
    seconds_a_step(0.7)
    said = said_by(lambda: fe.sample(normal), capsys)
    assert "MALT: about 13 min, 1,200 trajectories a chain" in said


@pytest.mark.parametrize(("seconds", "says"), [(0.5, True), (0.001, False)])
def test_a_very_long_run_is_told_before_chains_are_started(
    seconds: float,
    says: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1,120 trajectories of 7.2 steps at first: at half a second a gradient 67 minutes."""

    def stop(*_: Any) -> None:
        raise SaidError

    monkeypatch.setattr(Trajectories, "seconds_of_a_gradient", lambda _: seconds)
    monkeypatch.setattr(adjusted, "descend", stop)
    said = said_by(lambda: fe.sample(normal), capsys)
    guess = "MALT, a first guess by one gradient: about 67 min, 1,200 trajectories a chain"
    assert (guess in said) == says


def test_what_a_bar_times_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    bare, shown = (fe.sample(normal, compile="eager", progress_bar=bar) for bar in (False, True))
    assert bare.attrs["num_gradients"] == shown.attrs["num_gradients"]


def test_a_run_that_seemed_short_says_what_it_takes_after_its_warm_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In warm-up a trajectory may have had fewer steps."""
    monkeypatch.setattr(progress, "memory_of_run", lambda *_: 3e9)
    settings = {"step_size": torch.ones(2, 1)}
    chains, recorder = SimpleNamespace(settings=settings), SimpleNamespace(num_draws=0)
    plan = RunPlan(RunLength(), progress=True)
    watch = Watch(plan, 1, cast(Any, chains), cast(Any, recorder))
    with watch.bar:
        for _ in range(3):
            watch.after_step("warm-up")
        watch.say("MALT", Prospect(1), last=False)
        assert not watch.said
        watch.say("MALT", Prospect(1e9), last=True)
        watch.say("MALT", Prospect(2e9), last=True)
    said = capsys.readouterr().err
    assert said.count("about") == 1
    assert "3 GB of memory" in said


@pytest.mark.parametrize("max_seconds", [None, 1e-9])
def test_a_warm_up_takes_half_of_what_is_allowed_at_most(max_seconds: float | None) -> None:
    """But for its last window, of 30 trajectories; undisturbed it takes 120 of them and more."""
    most = 50_000 if max_seconds else 100
    with pytest.warns(RuntimeWarning, match="max_s"):
        draws = fe.sample(normal, max_steps=most, max_seconds=max_seconds, progress_bar=False)
    assert 30 < draws.attrs["warmup_steps"] <= (31 if max_seconds else most // 2 + 30)


def test_an_estimate_out_of_reach_names_the_localization(
    seconds_a_step: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """With critical friction and ε = 1/4a a relaxation is 4 √(a/γ) steps; 55 of them are needed."""
    seconds_a_step(0.001)
    module, inputs = nn.Linear(2, 1, bias=False), torch.zeros(100, 2)
    with torch.no_grad():
        module.weight.zero_()
    inputs[:, 0] = (273_000 * log(100) / 100) ** 0.5  # so that a = nβh = 273,000
    said = said_by(
        lambda: fe.estimate_free_energy(
            fe.FlatNetwork(module),
            (inputs, torch.zeros(100)),
            likelihood="normal",
            batch_size=None,
            kernel=fe.BAOAB,
        ),
        capsys,
    )
    assert (
        "BAOAB: about 40 s; γ = 1 would need 120,000 steps here, and 50,000 are allowed: "
        "raise localization to 10\n" in said
    )


class Measured:
    """What an adaptation knows: a relaxation, and what takes part in it."""

    exact_gradient, num_steps = False, 500

    def __init__(self, of_noise: float) -> None:
        self.of_noise = of_noise

    def relaxation(self, stiffer: float = 1.0, *, noisy: bool = True) -> float:
        return (self.of_noise if noisy else 1.0) * 200 / stiffer


def prospect(of_noise: float, **known: Any) -> Prospect:
    offsets = known.pop("loss_offsets", None)
    plan = RunPlan(RunLength(), until=Targets(loss_offsets=offsets))
    target = cast(Target, SimpleNamespace(source=None, num_groups=1, least_curvature=None))
    vars(target).update(known)
    found = of_relaxation(cast(Adaptation, Measured(of_noise)), target, plan)
    assert found is not None
    return found


def test_within_reach_it_counts_warm_up_and_draws() -> None:
    """Five relaxations of 200 steps, of which 500 steps are done, and 25 steps a draw at most."""
    assert prospect(1.0) == Prospect(1000 - 500 + 1000 * 25)
    assert prospect(1.0).line("BAOAB", 0.002) == "BAOAB: about 50 s, 26,000 steps a chain"
    assert prospect(1.0).line("BAOAB", 0.0002) == ""


def test_out_of_reach_it_says_what_would_help() -> None:
    """205 relaxations of each coordinate, 55 of the loss."""
    assert prospect(2.0).line("BAOAB", 0.01) == (
        "BAOAB: about 4 min; the targets would need 82,000 steps here, and max_steps=50,000 are "
        "allowed: raise max_steps to 82,000, or take larger minibatches"
    )
    assert prospect(20.0, least_curvature=0.1, loss_offsets=(0.0,)).line("BAOAB", 0.1) == (
        "BAOAB: about 74 min; γ = 0.1 would need 220,000 steps here, and 50,000 are allowed: "
        "raise localization to 0.5, or take batch_size=None"
    )


@pytest.mark.parametrize(
    ("num_steps", "seconds", "expected"),
    [
        (10, 0.06, "MALT: about 60 s, 1,000 trajectories a chain"),
        (
            256,
            0.6,
            "MALT: about 20 s; trajectories take 256 steps here, so that the targets would need "
            "66,000, and max_steps=50,000 are allowed: raise max_steps to 66,000",
        ),
    ],
)
def test_long_trajectories_say_how_many_steps_they_need(
    num_steps: int, seconds: float, expected: str
) -> None:
    chains = cast(Trajectories, SimpleNamespace(num_gradients=40_000, mean_num_steps=num_steps))
    plan, target = RunPlan(RunLength(), until=Targets()), SimpleNamespace(num_groups=1)
    target.least_curvature = None
    assert of_trajectories(chains, cast(Target, target), plan).line("MALT", seconds) == expected


def test_trajectories_of_an_estimate_name_the_localization() -> None:
    """Each of three checkpoints needs an ESS of 400 of its own four chains: 100 trajectories."""
    target = cast(Target, SimpleNamespace(num_groups=3, least_curvature=1.0))
    plan = RunPlan(RunLength(), until=Targets(loss_offsets=(0.0,) * 3), num_chains=12)
    chains = cast(Trajectories, SimpleNamespace(num_gradients=40_000, mean_num_steps=90))
    assert of_trajectories(chains, target, plan, 10).line("MALT", 0.06) == (
        "MALT: about 60 s, 1,100 trajectories a chain; to shorten it, raise localization"
    )
    chains = cast(Trajectories, SimpleNamespace(num_gradients=40_000, mean_num_steps=100))
    assert of_trajectories(chains, target, plan, 10).line("MALT", 0.6) == (
        "MALT: about 60 s; trajectories take 100 steps here, so that the targets would need "
        "51,000, and 50,000 are allowed: raise localization"
    )


def test_the_bar_counts_what_remains_from_the_first_step_on() -> None:
    plan = RunPlan(RunLength(), progress=True)
    settings = {"step_size": torch.ones(2, 1)}
    chains, recorder = SimpleNamespace(settings=settings), SimpleNamespace(num_draws=0)
    watch = Watch(plan, 1, cast(Any, chains), cast(Any, recorder))
    with watch.bar as bar:
        bar.start_t = bar.last_print_t = time.time() - 60  # a minute of tracing and compiling
        for _ in range(TIMED + 1):
            watch.after_step("warm-up")
        assert bar.initial == 1
        assert bar.format_dict["elapsed"] < 30
        assert watch.num_steps == TIMED + 1
