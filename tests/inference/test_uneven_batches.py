"""Loaders that pad each batch to its own length: the same as if all were padded alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from exact import linear_gaussian_posterior, mcse_of_mean, z_score
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import ppl_fe as fe
from ppl_fe.free_energy.local_chains import held_out_loss

N, B, LONGEST = 24, 4, 7
GENERATOR = torch.Generator().manual_seed(3)
ROWS = [torch.randn(4 + i % 4, generator=GENERATOR) for i in range(N)]
X = torch.stack([row.sum() for row in ROWS])
Y = 0.7 * X + torch.randn(N, generator=GENERATOR)
TOKENS = [torch.randint(1, 20, (4 + i % 4,), generator=GENERATOR) for i in range(N)]


def by_batch(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True)


def alike(rows: list[Tensor]) -> Tensor:
    padded = by_batch(rows)
    return pad(padded, (0, LONGEST - padded.shape[1]))


def loader(rows: list[Tensor], targets: Tensor, padded: Any) -> DataLoader[Any]:
    def collate(items: list[int]) -> tuple[Tensor, Tensor]:
        return padded([rows[i] for i in items]), targets[items]

    numbers: Any = range(N)
    return DataLoader(numbers, batch_size=B, shuffle=True, collate_fn=collate)


def line(rows: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample_size=len(y)):
        pyro.sample("y", dist.Normal(slope * rows.sum(-1), 1.0), obs=y)


@pytest.fixture
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the loader's batches differ in shape")
        warnings.filterwarnings("ignore", "warmup_steps=")
        yield


def draws(padded: Any, **changed: Any) -> xr.DataTree:
    options: dict[str, Any] = {
        "num_samples": 20,
        "warmup_steps": 20,
        "num_chains": 3,
        "progress_bar": False,
    }
    kernel = fe.BAOAB(line, step_size=0.01, friction=20.0)
    return fe.sample(kernel, loader(ROWS, Y, padded), **{**options, **changed})


def test_the_draws_are_those_of_batches_padded_alike() -> None:
    with pytest.warns(RuntimeWarning, match="differ in shape, .* Pad all batches") as told:
        uneven = draws(by_batch)
    assert len(told) == 1
    assert (uneven.attrs["chain_method"], uneven.attrs["compile"]) == ("sequential", "eager")
    even = draws(alike)
    assert (even.attrs["chain_method"], even.attrs["compile"]) == ("vectorized", "traced")
    for name in ("posterior/slope", "sample_stats/loss"):
        one, other = np.asarray(uneven[name]), np.asarray(even[name])
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    draws(by_batch, chain_method="sequential")  # asked for: any warning would be an error


@pytest.mark.thorough
def test_a_step_on_another_shape_than_the_first(silent: None) -> None:
    """One chain: its batches can always be stacked, and differ from step to step."""
    uneven, even = draws(by_batch, num_chains=1), draws(alike, num_chains=1)
    np.testing.assert_allclose(
        uneven.posterior["slope"].values, even.posterior["slope"].values, rtol=1e-4, atol=1e-5
    )


@pytest.mark.thorough
def test_automatic_settings_are_the_same(silent: None) -> None:
    kernel = fe.BAOAB(line)
    options: dict[str, Any] = {"num_samples": 5, "warmup_steps": 40, "progress_bar": False}
    uneven, even = (
        fe.sample(kernel, loader(ROWS, Y, padded), **options) for padded in (by_batch, alike)
    )
    for name in ("tuned_step_size", "tuned_gradient_noise", "tuned_stiffest_curvature"):
        np.testing.assert_allclose(uneven.attrs[name], even.attrs[name], rtol=0.02)


@pytest.mark.thorough
def test_the_posterior_is_right(silent: None) -> None:
    exact = linear_gaussian_posterior(
        X[:, None].double().numpy(), Y.double().numpy(), np.zeros(1), gamma=1.0, beta=1.0
    )
    tree = draws(by_batch, num_samples=500, warmup_steps=100, thinning=4, num_chains=4)
    slope = tree.posterior["slope"].values
    assert abs(z_score(float(slope.mean()), exact.mean[0], mcse_of_mean(slope))) < 4


class Bag(nn.Module):
    """Indifferent to padding, whatever the vector of token 0."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head((self.embedding(tokens) * (tokens > 0)[..., None]).sum(1))
        return logits


@pytest.mark.thorough
def test_an_estimate_and_a_held_out_loss_are_those_of_batches_padded_alike(silent: None) -> None:
    torch.manual_seed(0)
    network, labels = fe.FlatNetwork(Bag()), torch.arange(N) % 2
    options: dict[str, Any] = {
        "localization": 100.0,
        "num_samples": 5,
        "warmup_steps": 5,
        "num_chains": 2,
        "step_size": 1e-3,
        "compile": "eager",
        "progress_bar": False,
    }
    uneven, even = (
        fe.estimate_free_energy(network, loader(TOKENS, labels, padded), **options)
        for padded in (by_batch, alike)
    )
    assert uneven.anchor_loss == pytest.approx(even.anchor_loss, rel=1e-5)
    assert uneven.wbic == pytest.approx(even.wbic, rel=1e-5)
    losses = [
        held_out_loss(network, network.anchor[None], loader(TOKENS, labels, padded)).item()
        for padded in (by_batch, alike)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_program_that_fails_on_another_shape_is_told_which() -> None:
    def of_fixed_length(rows: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(0.0, 1.0).expand([LONGEST]).to_event(1))
        with pyro.plate("data", N, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(rows @ slopes, 1.0), obs=y)

    source = loader(ROWS, Y, by_batch)
    with pytest.raises(ValueError, match=r"failed on a (batch of tensors of shapes|trial run)"):
        fe.sample(fe.BAOAB(of_fixed_length), source, progress_bar=False)


def test_latent_sites_that_grow_with_the_batch_are_refused() -> None:
    def growing(rows: Tensor, y: Tensor) -> None:
        size = rows.shape[1]
        slopes = pyro.sample("slopes", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        with pyro.plate("data", N, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(rows @ slopes, 1.0), obs=y)

    with pytest.raises(ValueError, match="latent sites change their shape with the batch"):
        fe.sample(fe.BAOAB(growing), loader(ROWS, Y, by_batch), progress_bar=False)


def test_gradients_of_all_the_data_are_refused_with_a_loader() -> None:
    """They would be the minibatch's, taken for exact."""
    kernel = fe.BAOAB(line, gradient="full_data")
    with pytest.raises(ValueError, match=r"gradient='full_data'.* draws its own minibatches"):
        fe.sample(kernel, loader(ROWS, Y, alike), progress_bar=False)


def test_a_collate_function_that_makes_more_rows_than_items_is_refused() -> None:
    """n counts items, so that a sum over two rows each would be twice the loss."""
    network, labels = fe.FlatNetwork(Bag()), torch.arange(N) % 2
    twice = loader(TOKENS, labels, alike)
    twice.collate_fn = lambda items: (
        alike([TOKENS[i] for i in items]).repeat(2, 1),
        labels[items].repeat(2),
    )
    with pytest.raises(ValueError, match="48 rows for 24 items"):
        fe.estimate_free_energy(network, twice, progress_bar=False)
