"""Covariance matrices that lose their factor at one chain's position: that chain, and no error."""

from __future__ import annotations

import json
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.factorisations import NaNFactors
from ppl_fe.inference.warmup.starts import uniform_positions

FLOAT64 = r"factorises a matrix, .* try torch\.set_default_dtype\(torch\.float64\)"


def correlation(y: Tensor) -> None:
    """A matrix with rho beside the diagonal: positive definite for |rho| < 1 alone."""
    rho = pyro.sample("rho", dist.Normal(torch.zeros((), dtype=y.dtype), 0.3))
    matrix = torch.eye(2, dtype=y.dtype) + rho * torch.eye(2, dtype=y.dtype).flip(0)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2, dtype=y.dtype), matrix), obs=y)


Y = torch.tensor([[0.3, -0.4], [1.0, 0.2], [-0.5, -0.6]])


def run(**changed: Any) -> Any:
    options: dict[str, Any] = {
        "initial_params": {"rho": torch.tensor([0.1, 1.5, -0.2])},
        "num_samples": 10,
        "warmup_steps": 0,
        "num_chains": 3,
        "progress_bar": False,
    }
    options |= changed
    return fe.sample(fe.SGLD(correlation, step_size=1e-4), options.pop("y", Y), **options)


@pytest.mark.parametrize(
    "how",
    [
        {"compile": "traced"},
        pytest.param({"compile": "eager"}, marks=pytest.mark.thorough),
        pytest.param({"chain_method": "sequential"}, marks=pytest.mark.thorough),
        pytest.param({"compile": "compiled"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_chain_is_named_the_others_go_on_and_float64_is_offered(how: Any) -> None:
    with pytest.warns(RuntimeWarning, match=f"chain 1, the gradient of rho .* step 0 .*{FLOAT64}"):
        tree = run(**how)
    assert list(json.loads(tree.attrs["failed_chains"])) == ["1"]
    assert tree.posterior.chain.values.tolist() == [0, 2]
    alone = run(initial_params={"rho": torch.tensor([0.1, -0.3, -0.2])}, **how)
    first = tree.posterior["rho"].sel(chain=0)
    assert first.equals(alone.posterior["rho"].sel(chain=0))


@pytest.mark.thorough
def test_in_float64_nothing_more_is_offered() -> None:
    with pytest.warns(RuntimeWarning, match=r"the gradient of rho was not finite at step 0$"):
        run(y=Y.double())


def test_if_every_chain_fails_the_error_says_so() -> None:
    with pytest.raises(fe.DivergedError, match=FLOAT64):
        run(initial_params={"rho": torch.tensor([1.1, 1.5, -1.2])}, compile="eager")


def test_a_start_without_a_factor_is_drawn_again() -> None:
    starts = uniform_positions(Density(correlation, (Y,)), 40, seed=0)
    assert starts.abs().max() < 1  # of draws up to 2


@pytest.mark.parametrize(
    "function",
    [
        torch.linalg.inv,
        torch.linalg.cholesky,
        lambda a: torch.linalg.solve(a, torch.ones(2)),
        lambda a: torch.linalg.lu_factor(a)[0],
    ],
)
def test_the_other_factorisations(function: Any) -> None:
    good = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    bad = torch.ones(2, 2) if function is not torch.linalg.cholesky else -good
    with NaNFactors() as factors:
        found = function(torch.stack([good, bad]))
        one = function(bad)
    torch.testing.assert_close(found[0], function(good))
    assert found[1].isnan().any()
    assert one.isnan().any()
    assert factors.met
