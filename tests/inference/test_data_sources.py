"""The same posterior from tensors, from a DataLoader, and inside Pyro's own MCMC."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import linear_gaussian_posterior, mcse_of_mean, z_score
from pyro.infer import MCMC
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ppl_fe as fe
from ppl_fe.data import as_data

N, B = 40, 10
GENERATOR = torch.Generator().manual_seed(11)
X = torch.randn(N, 2, generator=GENERATOR)
Y = X @ torch.tensor([0.8, -0.5]) + torch.randn(N, generator=GENERATOR)
EXACT = linear_gaussian_posterior(
    X.double().numpy(), Y.double().numpy(), np.zeros(2), gamma=1.0, beta=1.0
)


def on_tensors(x: Tensor, y: Tensor, size: int | None = B) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y), subsample_size=size):
        inputs, targets = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(inputs @ w, 1.0), obs=targets)


def on_batches(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", N, subsample_size=len(y)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(X, Y), batch_size=B, shuffle=True)


def means_and_errors(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C, S, 2) -> means and standard errors of both weights and of their squares about EXACT."""
    values = np.concatenate([draws, (draws - EXACT.mean) ** 2], axis=-1)
    errors = [mcse_of_mean(values[..., k]) for k in range(values.shape[-1])]
    return values.mean((0, 1)), np.array(errors)


@pytest.mark.thorough
@pytest.mark.parametrize("kernel", [pytest.param(fe.SGLD, marks=pytest.mark.slow), fe.BAOAB])
def test_a_loader_gives_the_posterior_that_tensors_give(kernel: type[fe.Kernel]) -> None:
    arguments: dict[str, Any] = {
        "num_samples": 250,
        "warmup_steps": 200,
        "thinning": 4,
        "num_chains": 16,
        "compile": "traced",
        "progress_bar": False,
    }
    # Enough friction for the gradient noise, which would else heat BAOAB.
    extra: dict[str, Any] = {"friction": 40.0} if kernel is fe.BAOAB else {}
    step_size = 0.002
    tensors = fe.sample(kernel(on_tensors, step_size=step_size, **extra), X, Y, **arguments)
    source = as_data(loader())
    batches = fe.sample(kernel(on_batches, step_size=step_size, **extra), source, **arguments)
    assert batches.attrs["num_data"] == tensors.attrs["num_data"] == N
    mean, error = means_and_errors(tensors.posterior["w"].values)
    other_mean, other_error = means_and_errors(batches.posterior["w"].values)
    for k in range(2):
        assert abs(z_score(mean[k], EXACT.mean[k], error[k])) < 4
        assert abs(z_score(other_mean[k], EXACT.mean[k], other_error[k])) < 4
    # Gradient noise inflates both variances, the loader's (without replacement) a little less.
    for k, variance in enumerate(np.diag(EXACT.covariance)):
        assert variance - 4 * error[2 + k] < mean[2 + k] < 1.5 * variance
        assert variance - 4 * other_error[2 + k] < other_mean[2 + k]
        assert other_mean[2 + k] < mean[2 + k] + 4 * math.hypot(error[2 + k], other_error[2 + k])
    # The loss is per datum of the whole data set, not of the batch.
    losses = [tree.sample_stats["loss"].values for tree in (tensors, batches)]
    difference = losses[0].mean() - losses[1].mean()
    assert abs(z_score(difference, 0.0, math.hypot(*map(mcse_of_mean, losses)))) < 4
    assert losses[1].mean() == pytest.approx(EXACT.expected_loss, rel=0.05)


def test_a_loader_run_is_reproducible() -> None:
    def weights(seed: int) -> np.ndarray:
        kernel = fe.SGLD(on_batches, step_size=0.004)
        tree = fe.sample(
            kernel,
            loader(),
            num_samples=30,
            warmup_steps=0,
            num_chains=2,
            seed=seed,
            compile="eager",
            progress_bar=False,
        )
        return np.asarray(tree.posterior["w"].values)

    torch.manual_seed(0)
    first = weights(3)
    torch.manual_seed(1)
    np.testing.assert_array_equal(first, weights(3))
    assert not np.isclose(first, weights(4)).any(axis=1).any()


@pytest.mark.thorough
def test_the_local_posterior_takes_a_loader() -> None:
    class Plane:
        anchor = torch.zeros(2)

        def __call__(self, w: Tensor, x: Tensor) -> Tensor:
            return x @ w

    model = fe.models.local_posterior(
        Plane(), "normal", localization=1.0, inverse_temperature=1.0, batch_size=B, num_data=N
    )
    tree = fe.sample(
        fe.BAOAB(model, step_size=0.004, friction=10.0),
        as_data(loader()),
        num_samples=500,
        warmup_steps=200,
        thinning=4,
        compile="traced",
        progress_bar=False,
    )
    mean, error = means_and_errors(tree.posterior["w"].values)
    for k in range(2):
        assert abs(z_score(mean[k], EXACT.mean[k], error[k])) < 4


@pytest.mark.parametrize("step_size", [pytest.param(0.02, marks=pytest.mark.thorough), "auto"])
def test_inside_pyro_s_mcmc(step_size: float | Literal["auto"]) -> None:
    pyro.set_rng_seed(2)
    kernel = fe.BAOAB(on_tensors, step_size=step_size)
    mcmc = MCMC(kernel, num_samples=800, warmup_steps=400, disable_progbar=True)
    mcmc.run(X, Y, None)
    draws = mcmc.get_samples(group_by_chain=True)["w"].double().numpy()
    assert draws.shape == (1, 800, 2)
    mean, error = means_and_errors(draws)
    truth = [*EXACT.mean, *np.diag(EXACT.covariance)]  # BAOAB is exact on a quadratic
    for k in range(4):
        assert abs(z_score(mean[k], truth[k], error[k])) < 4


def test_pyro_s_mcmc_returns_values_on_the_support() -> None:
    def model() -> None:
        pyro.sample("sd", dist.LogNormal(1.0, 0.5))

    pyro.set_rng_seed(3)
    start = {"sd": torch.tensor(1.0)}
    kernel = fe.SGLD(model, step_size=0.1)
    mcmc = MCMC(
        kernel, num_samples=600, warmup_steps=100, initial_params=start, disable_progbar=True
    )
    mcmc.run()
    log_sd = mcmc.get_samples(group_by_chain=True)["sd"].log().double().numpy()
    assert abs(z_score(float(log_sd.mean()), 1.0, mcse_of_mean(log_sd))) < 4
    assert mcmc.diagnostics()["step_size"]["chain 0"] == pytest.approx(0.1)


def test_keywords_of_a_program_may_be_tensors_beside_a_loader() -> None:
    def scaled(x: Tensor, y: Tensor, sd: Any = 1.0) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", N, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(x @ w, sd), obs=y)

    options: dict[str, Any] = {"num_samples": 6, "warmup_steps": 2, "progress_bar": False}
    one, other = (
        fe.sample(fe.SGLD(scaled, step_size=0.001), loader(), sd=sd, compile="traced", **options)
        for sd in (torch.tensor(0.5), 0.5)
    )
    np.testing.assert_allclose(one.posterior["w"], other.posterior["w"], rtol=1e-5)
