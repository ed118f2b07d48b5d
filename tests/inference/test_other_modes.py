"""A mode that a descent found and the draws hardly saw is named, though all chains agree."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases.stored_runs import crashing_after

import ppl_fe as fe
from ppl_fe.inference import adjusted
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.run.conclusion import conclude
from ppl_fe.inference.warmup.newton import Descent, descend
from ppl_fe.inference.warmup.other_modes import OtherModes

SHARE, AWAY = 0.004, 20.0


def rare() -> None:
    """A bump of 0.4 % of the mass at 20 standard deviations: 1.6 times the variance more."""
    w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=torch.float64), 1000.0))
    bumps = dist.Normal(torch.tensor([0.0, AWAY], dtype=torch.float64), 1.0)
    weights = torch.tensor([1 - SHARE, SHARE], dtype=torch.float64)
    pyro.factor("both", torch.logsumexp(weights.log() + bumps.log_prob(w[..., None]), -1))


def modes() -> OtherModes:
    found = descend(Density(rare), torch.tensor([[1.0], [19.0], [-1.0], [21.0]]).double())
    assert found is not None
    other = OtherModes.of(found)
    assert other is not None
    return other


def test_what_a_mode_adds_is_its_share_times_its_squared_distance() -> None:
    other = modes()
    exact = SHARE / (1 - SHARE)
    assert other.position[:, 0].tolist() == pytest.approx([0.0, AWAY], abs=0.1)
    assert other.share.tolist() == pytest.approx([1 - SHARE, SHARE], rel=0.02)
    assert other.added.tolist() == pytest.approx([exact * AWAY**2] * 2, rel=0.02)


@pytest.mark.parametrize(("near", "missing"), [(0, True), (1, True), (8, False)])
def test_a_mode_is_missing_where_draws_near_it_are_fewer_than_a_tenth(
    near: int, missing: bool
) -> None:
    """Of 4,000 draws 16 should be there."""
    other = modes()
    at = torch.zeros(4, 1, dtype=torch.float64)
    for number in range(1000):
        at[0] = AWAY if number < near else 0.0
        other.look(at)
    blocks = {"v": slice(0, 0), "w": slice(0, 1)}
    assert set(other.missing(blocks)) == ({"w"} if missing else set())
    other.forget()
    other.look(at + AWAY)
    assert set(other.missing(blocks)) == {"w"}  # all about the rare one, none about the other


def test_one_mode_leaves_nothing_to_look_for() -> None:
    def normal() -> None:
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    found = descend(Density(normal), torch.ones(3, 2))
    assert isinstance(found, Descent)
    assert OtherModes.of(found) is None


def short(**changed: Any) -> Any:
    """Too few trajectories, of chains that begin about both modes, for the rare one to last."""
    options = {"num_samples": 60, "warmup_steps": 150, "compile": "eager", "progress_bar": False}
    return fe.sample(rare, **{**options, **changed})


@pytest.mark.parametrize("steps", [100, 170])  # within the warm-up, and within the draws
def test_a_resumed_run_knows_the_modes_that_were_found(steps: int, tmp_path: Path) -> None:
    whole = short()
    with crashing_after(steps):
        short(save_to=tmp_path / "draws")
    with pytest.MonkeyPatch.context() as patch:  # it does not descend again
        patch.setattr(adjusted, "descend", None)
        resumed = short(save_to=tmp_path / "draws", resume=True)
    assert np.array_equal(resumed.posterior["w"], whole.posterior["w"])
    assert resumed.attrs["unvisited_modes"] == whole.attrs["unvisited_modes"]


def test_a_diagnosis_and_the_end_of_a_run_name_it() -> None:
    draws = short(num_samples=40)
    draws.attrs["unvisited_modes"] = json.dumps({"w": 1.6})
    first = fe.diagnose(draws).table.set_index("check").loc["unvisited_modes"]
    assert not first["passed"]
    assert "far off in 'w'; by its mass a variance is some 2.6 times" in first["advice"]
    draws.attrs |= {"target_missed": "", "interrupted": 0}
    with pytest.warns(RuntimeWarning, match="not an answer: a descent before the run found"):
        conclude(draws, Density(rare), show=False)
    draws.attrs["unvisited_modes"] = "{}"
    assert fe.diagnose(draws).table.set_index("check").loc["unvisited_modes"]["passed"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conclude(draws, Density(rare), show=False)


@pytest.mark.parametrize("heavier", [0.3, 3.0])  # the spike's mass over the slab's
def test_a_spike_within_a_slab_is_another_mode(heavier: float) -> None:
    """Its centre is a quarter of the slab's sd away, and 25 of its own."""
    two = torch.ones(2).double()
    position = torch.tensor([[0.25], [0.0]]).double()
    factor = torch.tensor([1.0, 0.01]).double()[:, None, None]
    mass = torch.tensor([0.0, math.log(heavier)]).double()
    other = OtherModes.of(Descent(position, factor, mass, 0 * two))
    assert other is not None
    other.look(torch.tensor([[0.7], [-1.2], [0.1]]))  # draws of the slab alone
    assert list(other.missing({"w": slice(0, 1)})) == ["w"]
    other.look(torch.tensor([[0.7], [-0.005], [0.002]]))
    assert other.missing({"w": slice(0, 1)}) == {}


def test_a_point_on_the_way_to_a_mode_is_none_within_it() -> None:
    zero = torch.zeros(2).double()
    position = torch.tensor([[0.0], [1.0]]).double()
    factor = torch.tensor([0.1, 2.0]).double()[:, None, None]
    away = torch.tensor([0.0, 1.0]).double()  # of the second, from the first
    assert OtherModes.of(Descent(position, factor, zero, away)) is None
