"""Programs that no function of torch.func takes: told why, and sampled by plain autograd."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from exact import mcse_of_mean, z_score
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import ppl_fe as fe
from ppl_fe.free_energy.local_chains import held_out_loss
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.step.batchable import batchable

COUNTS = torch.tensor([0.0, 1.0, 3.0, 2.0])


def hidden_markov(counts: Tensor) -> None:
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    rate = pyro.sample("rate", dist.Gamma(torch.ones(2) * 2, 1.0).to_event(1))
    states = dist.DiscreteHMM(torch.zeros(2), rows.log(), dist.Poisson(rate))
    pyro.sample("counts", states, obs=counts)


def by_all_paths(rows: Tensor, rate: Tensor) -> Tensor:
    """Sum over all sequences of states; the first, before the data, is a toss of a coin."""
    emitted = dist.Poisson(rate).log_prob(COUNTS[:, None])  # (T, 2)
    paths = []
    for path in itertools.product(range(2), repeat=len(COUNTS) + 1):
        terms = [rows[a, b].log() for a, b in itertools.pairwise(path)]
        terms += [emitted[t, state] for t, state in enumerate(path[1:])]
        paths.append(torch.stack(terms).sum())
    return torch.stack(paths).logsumexp(0) - math.log(2)


def run(program: Any, *args: Any, **changed: Any) -> xr.DataTree:
    options: dict[str, Any] = {
        "num_samples": 10,
        "warmup_steps": 5,
        "num_chains": 2,
        "progress_bar": False,
    }
    return fe.sample(fe.BAOAB(program, step_size=0.05), *args, **{**options, **changed})


def test_a_hidden_markov_model_has_the_gradient_of_the_sum_over_all_paths() -> None:
    density = Density(hidden_markov, (COUNTS,))
    positions = torch.tensor([[0.3, -0.5, 0.2, 1.0], [-1.0, 0.4, 0.7, -0.6]])
    with pytest.warns(RuntimeWarning, match="cannot be vectorised"):
        density = batchable(density, positions)
    gradient, terms = density.batched_gradient(density, positions, (), (), density.tensors)
    for chain, position in enumerate(positions):
        leaf = position.clone().requires_grad_()
        parts = {name: leaf[block] for name, block in density.blocks.items()}
        rows_of = torch.distributions.biject_to(dist.constraints.simplex)
        given = parts["rows"].reshape(2, 1)
        rows, rate = rows_of(given), parts["rate"].exp()
        likelihood = by_all_paths(rows, rate)
        torch.testing.assert_close(terms.log_likelihood[chain], likelihood.detach())
        prior = dist.Gamma(torch.ones(2) * 2, 1.0).log_prob(rate).sum() + parts["rate"].sum()
        prior = prior + dist.Dirichlet(torch.ones(2, 2)).log_prob(rows).sum()
        prior = prior + rows_of.log_abs_det_jacobian(given, rows).sum()
        (slope,) = torch.autograd.grad(likelihood + prior, leaf)
        torch.testing.assert_close(gradient[chain], slope, rtol=1e-4, atol=1e-4)


def test_it_is_told_by_site_and_distribution_and_runs_as_if_asked_for() -> None:
    with pytest.warns(
        RuntimeWarning,
        match=r"^the model cannot be vectorised over chains: .*setup_context.*, in the log-density "
        r"of site 'counts', DiscreteHMM\. Running chains one after another, uncompiled; "
        r"pass chain_method='sequential' to silence this$",
    ) as told:
        fallen_back = run(hidden_markov, COUNTS)
    assert len(told) == 1
    asked_for = run(hidden_markov, COUNTS, chain_method="sequential")  # a warning were an error
    for tree in (fallen_back, asked_for):
        assert (tree.attrs["chain_method"], tree.attrs["compile"]) == ("sequential", "eager")
    xr.testing.assert_identical(
        fallen_back.posterior.to_dataset().drop_attrs(),
        asked_for.posterior.to_dataset().drop_attrs(),
    )


class Square(torch.autograd.Function):
    """Of the old form, and through NumPy, so that a graph would take its result for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.asarray(np.square(x.detach().numpy())))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return 2 * x * slope


square: Any = Square.apply


def through_numpy() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("narrower", -1.5 * square(x))


def by_its_own_gradient() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    point = x if x.requires_grad else x.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(0.75 * point**2, point, create_graph=True)
    pyro.factor("narrower", -x * slope)


def checkpointed() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("narrower", checkpoint(lambda x: -1.5 * x**2, x, use_reentrant=False))


@pytest.mark.parametrize(
    "program",
    [
        through_numpy,
        *(pytest.param(p, marks=pytest.mark.thorough) for p in (by_its_own_gradient, checkpointed)),
    ],
)
def test_what_pyro_s_own_kernels_take_has_its_gradient(program: Any) -> None:
    positions = torch.tensor([[0.5], [-2.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        density = batchable(Density(program), positions)
        gradient, terms = density.batched_gradient(density, positions, (), (), ())
    torch.testing.assert_close(gradient, -4 * positions)
    expected = -2 * positions[:, 0] ** 2 - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(terms.log_density, expected)


@pytest.mark.parametrize(
    "metric",
    [
        pytest.param("identity", marks=pytest.mark.slow),
        pytest.param("dense", marks=pytest.mark.slow),
    ],
)
def test_the_law_is_right(metric: Any) -> None:
    """N(0, 1) times exp(−1.5x²) is N(0, 1/4)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        tree = fe.sample(
            fe.BAOAB(through_numpy, metric=metric),
            num_samples=1000,
            warmup_steps=100,
            thinning=2,
            num_chains=3,
            progress_bar=False,
        )
    squares = tree.posterior["x"].values.astype(np.float64) ** 2
    assert abs(z_score(float(squares.mean()), 0.25, mcse_of_mean(squares))) < 4.5


@pytest.mark.thorough
def test_all_the_data_in_every_step() -> None:
    """Chunks of a plate that subsamples are gone through one by one."""

    def model(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.factor("through", 0.0 * square(rate))
        with pyro.plate("data", len(y), subsample_size=2) as rows:
            pyro.sample("y", dist.Poisson(rate), obs=y[rows])

    kernel = fe.SGLD(model, step_size=0.01, gradient="full_data")
    tree = fe.sample(
        kernel,
        COUNTS,
        num_samples=5,
        warmup_steps=0,
        num_chains=2,
        chain_method="sequential",
        progress_bar=False,
    )
    assert json.loads(tree.attrs["failed_chains"]) == {}
    rate = torch.tensor(tree.posterior["rate"].values)
    # The loss of all counts, not two.
    expected = -dist.Poisson(rate[..., None]).log_prob(COUNTS).mean(-1)
    torch.testing.assert_close(torch.tensor(tree.sample_stats["loss"].values), expected)


def branching_on_rows(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=2) as rows:
        batch = y[rows]
        spread = 1.0 if batch.sum() > 0 else 2.0
        pyro.sample("y", dist.Normal(mean, spread), obs=batch)


def test_control_flow_that_hangs_on_the_minibatch_is_called_so() -> None:
    with pytest.warns(RuntimeWarning, match=r"depends on the values of the minibatch\. .*uncompil"):
        run(branching_on_rows, COUNTS)


def squared(output: Tensor, targets: Tensor) -> None:
    pyro.sample("y", dist.Normal(square(output.reshape(-1)), 1.0), obs=targets)


def test_the_loss_of_a_likelihood_that_does_not_batch() -> None:
    torch.manual_seed(0)
    network = fe.FlatNetwork(torch.nn.Linear(2, 1))
    x, y = torch.randn(30, 2), torch.randn(30)
    found = held_out_loss(network, network.anchor[None], (x, y), likelihood=squared, batch_size=8)
    mean = network(network.anchor, x).reshape(-1) ** 2
    assert found.item() == pytest.approx(
        -dist.Normal(mean, 1.0).log_prob(y).mean().item(), rel=1e-5
    )


@pytest.mark.thorough
def test_in_a_process_each_and_in_what_follows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        tree = run(hidden_markov, COUNTS, chain_method="parallel", num_samples=12)
        terms = fe.add_log_likelihood(tree, hidden_markov, COUNTS)
        verdict = fe.diagnose(tree, model=hidden_markov, data=COUNTS)
    rows, rate = (torch.tensor(tree.posterior[name].values[1, 3]) for name in ("rows", "rate"))
    expected = by_all_paths(rows, rate).item()
    assert terms.log_likelihood["counts"].values[1, 3] == pytest.approx(expected, rel=1e-4)
    assert "stein_p_value" in verdict.table["check"].tolist()
