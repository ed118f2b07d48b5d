"""Chains about an anchor: data of every form, equal seeds, attributes, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from exact import llc
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ppl_fe as fe
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.free_energy.local_chains import held_out_loss, sample_local_posteriors
from ppl_fe.inference.run_plan import RunLength

N = 60
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(101))
LABELS = torch.arange(N) % 2
SHORT: dict[str, Any] = {
    "num_samples": 8,
    "thinning": 1,
    "warmup_steps": 6,
    "compile": "eager",
    "progress_bar": False,
}


def classifier() -> fe.FlatNetwork:
    torch.manual_seed(102)
    return fe.FlatNetwork(nn.Linear(3, 2))


def estimate(data: Any = (X, LABELS), **options: Any) -> fe.FreeEnergyEstimate:
    return fe.estimate_free_energy(classifier(), data, **{**SHORT, **options})


def test_equal_seeds_give_equal_numbers() -> None:
    first, again, other = (estimate(seed=seed, batch_size=10) for seed in (4, 4, 5))
    assert first.wbic == again.wbic
    for group in ("posterior", "sample_stats"):
        xr.testing.assert_equal(first.draws[group].dataset, again.draws[group].dataset)
    assert first.wbic != other.wbic


def test_the_draws_carry_beta_gamma_and_n(tmp_path: Path) -> None:
    path = tmp_path / "draws.zarr"
    found = estimate(localization=7.0, inverse_temperature=0.3, save_to=path)
    with xr.open_datatree(path, engine="zarr") as stored:
        for attrs in (found.draws.attrs, stored.attrs):
            assert attrs["localization"] == found.localization == 7.0
            assert attrs["inverse_temperature"] == found.inverse_temperature == 0.3
            assert attrs["num_data"] == found.num_data == N
            assert attrs["batch_size"] == N
    with pytest.raises(FileExistsError, match="save_to"):
        estimate(save_to=path)


def test_a_loader_gives_the_answer_of_all_the_data() -> None:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(103))
    network = fe.FlatNetwork(nn.Linear(3, 1, bias=False)).with_state({"weight": torch.zeros(1, 3)})
    loader = DataLoader(TensorDataset(x, torch.zeros(100)), batch_size=25, shuffle=True)
    torch.manual_seed(104)
    found = fe.estimate_free_energy(
        network, loader, likelihood="normal", num_samples=250, thinning=4, warmup_steps=300,
        compile="traced", progress_bar=False,
    )  # fmt: skip
    assert found.num_data == 100
    assert found.draws.attrs["batch_size"] == 25
    assert found.anchor_loss == pytest.approx(0.5 * math.log(2 * math.pi), rel=1e-6)
    curvatures = np.linalg.eigvalsh((x.T @ x).double().numpy() / 100)
    exact = llc(curvatures, 100 / math.log(100), 1.0)
    # Minibatches may warm the chains by the tolerance, 2 %.
    assert abs(found.llc - exact) < 4 * found.llc_mcse + 0.02 * exact
    assert found.llc_mcse < 0.15 * exact


class Keyword(nn.Module):
    """Called by keyword and answering with `logits`, as Hugging Face's models are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, *, features: Tensor, mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.linear(features * mask))


def test_a_mapping_calls_the_network_by_keyword() -> None:
    mask = (torch.arange(3) < 2).float().expand(N, 3)
    torch.manual_seed(102)
    network = fe.FlatNetwork(Keyword())
    data = {"features": X, "mask": mask, "labels": LABELS}
    by_keyword = fe.estimate_free_energy(network, data, batch_size=10, seed=2, **SHORT)
    positional = estimate((X * mask, LABELS), batch_size=10, seed=2)
    assert by_keyword.anchor_loss == pytest.approx(positional.anchor_loss, rel=1e-6)
    assert by_keyword.wbic == pytest.approx(positional.wbic, rel=1e-4)


def test_each_chain_of_a_ladder_has_its_own_temperature() -> None:
    network = classifier()
    chains = sample_local_posteriors(
        network,
        torch.stack([network.anchor, network.anchor + 1]),
        (X, LABELS),
        ChainOptions(num_chains=2, length=RunLength(4, 4), compile="eager", progress_bar=False),
        ladder=torch.tensor([0.1, 0.2, 0.4]),
    )
    assert chains.num_groups == 6
    rungs = [0.1, 0.1, 0.2, 0.2, 0.4, 0.4]
    assert chains.inverse_temperature.tolist() == pytest.approx(rungs * 2)
    assert chains.draws.sample_stats.sizes["chain"] == 12
    assert len(chains.anchor_loss) == 2


def test_losses_on_other_data_than_the_chains_saw() -> None:
    network = classifier()
    anchors = torch.stack([network.anchor, network.anchor + 1])
    other = torch.randn(30, 3), torch.zeros(30, dtype=torch.int64)
    found = held_out_loss(network, anchors, other)
    expected = [nn.functional.cross_entropy(network(w, other[0]), other[1]) for w in anchors]
    assert found.tolist() == pytest.approx([loss.item() for loss in expected], rel=1e-5)
    loader = DataLoader(TensorDataset(*other), batch_size=7)
    assert held_out_loss(network, anchors, loader).tolist() == pytest.approx(
        found.tolist(), rel=1e-5
    )


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["localization", "inverse_temperature", "step_size", "tolerance"])
def test_what_must_be_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        estimate(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_chains": 0}, "num_chains"),
        ({"num_samples": 0}, "num_samples"),
        ({"chain_method": "threads"}, "chain_method"),
        ({"likelihood": "poisson"}, "likelihood must be one of"),
        ({"batch_size": "all"}, "batch_size must be a positive integer or None for all the data"),
        ({"seed": 1.5}, "seed must be an integer of at least 0, got 1.5"),
    ],
)
def test_other_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(**options)


def with_nan(x: Tensor) -> Tensor:
    return torch.cat([x[:-1], torch.full_like(x[-1:], math.nan)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, LABELS + 1), "2"),
        ((X, LABELS - 1), "-1"),
        ((with_nan(X), LABELS), "NaN"),
        ((X[:0], LABELS[:0]), "empty|no rows|0"),
        ((X, LABELS[:-1]), "59"),
        ((X[:2], LABELS[:2]), "inverse_temperature"),
    ],
    ids=["label too large", "label too small", "NaN", "empty", "lengths", "too few for beta"],
)
def test_bad_data_are_refused(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(data)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="gamma"):
        estimate(gamma=1.0)


def test_nan_in_the_weights_is_refused() -> None:
    module = nn.Linear(3, 2)
    nn.init.constant_(module.bias, math.nan)
    with pytest.raises(ValueError, match="NaN"):
        fe.FlatNetwork(module)
    network = classifier()
    network.anchor = with_nan(network.anchor)
    with pytest.raises(ValueError, match=r"network\.anchor holds NaN"):
        fe.estimate_free_energy(network, (X, LABELS), **SHORT)
