"""The rules of a race by themselves: runners whose numbers are known, without a chain."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import ppl_fe as fe
from ppl_fe.free_energy.contenders import Contender, Heat
from ppl_fe.free_energy.racing import Outcome, chances_of, race
from ppl_fe.free_energy.ranking_rows import _no_best


class Runner:
    """Estimates of a known mean, whose error halves with each round."""

    def __init__(self, wbic: float, *, error: float = 8.0, r_hat: float = 1.0, most: int = 9):
        self.wbic, self.error, self.r_hat = wbic, error, r_hat
        self.rounds, self.most, self.passes, self.heat = 0, most, 1.0, self

    def estimate(self) -> Any:
        return SimpleNamespace(
            wbic=self.wbic, wbic_mcse=self.error, r_hat=self.r_hat, ess=500.0, num_data=10,
            anchor_loss=self.wbic / 10,
        )  # fmt: skip

    def can_go_on(self, estimate: object) -> bool:
        return self.rounds < self.most

    def go_on(self) -> bool:
        self.rounds, self.error = self.rounds + 1, self.error / 2
        self.passes *= 2
        return False


class Failing(Runner):
    def estimate(self) -> Any:
        raise fe.DivergedError("all chains became non-finite")


class Interrupted(Runner):
    def go_on(self) -> bool:
        super().go_on()
        return True


def run(**runners: Runner) -> Outcome:
    def go_on(heats: Any) -> bool:
        return any(runner.go_on() for heat in heats for runner in heat)

    return race(cast("dict[str, Contender]", runners), 0, go_on)


def test_the_near_run_on_until_the_best_is_clear() -> None:
    found = run(best=Runner(0.0), near=Runner(4.0), far=Runner(100.0))
    assert found.settled
    assert found.alike == []
    assert found.passes["far"] == 1.0
    assert found.passes["best"] == found.passes["near"] == 2.0**found.rounds
    # 95 % certain of a difference of 4 are two errors whose root of squares is 4 / 1.645.
    assert 8.0 / 2**found.rounds < 4 / 1.645 / 2**0.5 <= 8.0 / 2 ** (found.rounds - 1)


def test_equal_ones_run_until_their_errors_are_below_what_matters() -> None:
    found = run(one=Runner(0.0), twin=Runner(0.0), far=Runner(100.0))
    assert (found.settled, found.small, found.alike) == (False, True, ["one", "twin"])
    assert found.rounds == 4  # 8 halved four times is half a nat
    said = _no_best(found)
    assert said.startswith("No best one is told apart: one, twin lie within their errors")
    assert said.endswith("all of these are below what matters. ")


def test_who_can_go_on_no_longer_leaves_it_open() -> None:
    found = run(one=Runner(0.0, most=1), twin=Runner(0.0, most=1))
    assert (found.settled, found.small, found.rounds) == (False, False, 1)
    assert "a larger localization, or more data, tells them apart sooner. " in _no_best(found)
    assert _no_best(run(best=Runner(0.0), far=Runner(100.0))) == ""


def test_what_fails_keeps_its_error_and_the_others_run() -> None:
    found = run(best=Runner(0.0), broken=Failing(0.0), far=Runner(100.0))
    assert isinstance(found.estimates["broken"], fe.DivergedError)
    assert found.settled
    assert set(found.pilot) == {"best", "far"}


def test_chains_that_have_not_mixed_have_no_chance_and_stay() -> None:
    runners = {"one": Runner(0.0, r_hat=1.5, most=1), "other": Runner(100.0, r_hat=1.5, most=1)}
    assert chances_of({name: one.estimate() for name, one in runners.items()}, 0) == {}
    found = run(**runners)
    assert (found.settled, found.alike) == (False, ["one", "other"])
    assert found.passes == {"one": 2.0, "other": 2.0}


def test_ctrl_c_ends_the_race_where_it_is() -> None:
    found = run(one=Interrupted(0.0), twin=Interrupted(0.0))
    assert found.rounds == 1
    assert found.passes == {"one": 2.0, "twin": 1.0}


def test_what_was_drawn_stands_where_chains_cannot_go_on() -> None:
    heat = cast(Heat, SimpleNamespace(chains=None, num_chains=2))
    contender = Contender(heat, 0)
    assert Heat.take(heat, [contender], MemoryError("too many chains")) is False
    assert contender.trouble.startswith("its chains could not go on: ")
    assert "too many chains" in contender.trouble
    assert contender.losses.shape == (2, 0)
