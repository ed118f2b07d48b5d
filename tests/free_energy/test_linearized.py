"""The linearised network's free energy and predictions, by other routes to the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ppl_fe.models import categorical, normal
from scipy.integrate import quad
from scipy.stats import multivariate_normal
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.data.sources import TensorData, as_data
from ppl_fe.free_energy.downstream import tangents as tangents_module
from ppl_fe.free_energy.downstream.gaussian_process import GaussianProcess
from ppl_fe.free_energy.downstream.tangents import tangents_of

COUNT, GAMMA, TAU = 12, 3.0, 0.5


def inputs(width: int) -> Tensor:
    return torch.randn(COUNT, width, generator=torch.Generator().manual_seed(0)).double()


def source(width: int, outputs: int = 1) -> TensorData:
    x, generator = inputs(width), torch.Generator().manual_seed(1)
    y = torch.randn(COUNT, outputs, generator=generator).double()
    found = as_data((x, y))
    assert isinstance(found, TensorData)
    return found


def network(*layers: nn.Module) -> fe.FlatNetwork:
    torch.manual_seed(1)
    for layer in layers:
        for weight in layer.parameters():
            nn.init.normal_(weight, std=0.7)
    return fe.FlatNetwork(nn.Sequential(*layers).double())


def process(net: fe.FlatNetwork, data: TensorData, head: str | None = None) -> GaussianProcess:
    found = tangents_of(net, data, head)
    covariance = found.covariance(GAMMA, TAU)
    return GaussianProcess(found.outputs, covariance, normal, data.targets, found.shape)


def test_of_a_linear_network_free_energy_and_predictions_are_exact() -> None:
    net, data = network(nn.Linear(4, 2)), source(4, outputs=2)
    fitted = process(net, data).fit()
    x = torch.cat([inputs(4), torch.ones(COUNT, 1).double()], 1)
    covariance = (x @ x.T / GAMMA + torch.eye(COUNT)).numpy()
    mean = net(net.anchor, data.inputs).detach().numpy()
    y = data.targets.numpy()
    exact = -sum(multivariate_normal.logpdf(y[:, k], mean[:, k], covariance) for k in range(2))
    assert fitted.free_energy == pytest.approx(exact, abs=1e-8)
    for i in range(COUNT):
        rest = np.arange(COUNT) != i
        weights = np.linalg.solve(covariance[np.ix_(rest, rest)], y[rest] - mean[rest])
        predicted = mean[i] + covariance[i, rest] @ weights
        np.testing.assert_allclose(fitted.left_out[i], predicted, atol=1e-8)


def test_the_tangents_are_those_of_finite_differences() -> None:
    net, data = network(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), source(3)
    rows = []
    for k in range(net.num_parameters):
        step = torch.zeros_like(net.anchor)
        step[k] = 1e-6
        there = [net(net.anchor + side * step, data.inputs).detach() for side in (1, -1)]
        rows.append(((there[0] - there[1]) / 2e-6).flatten())
    expected = torch.stack(rows).T @ torch.stack(rows)
    torch.testing.assert_close(tangents_of(net, data).moving, expected, rtol=1e-6, atol=1e-6)


def test_outputs_of_a_fresh_head_have_that_covariance() -> None:
    """Of a network whose features are linear in its weights, against draws of the weights."""
    net, data = network(nn.Linear(3, 4), nn.Linear(4, 2)), source(3)
    found = tangents_of(net, data, "1")
    expected = found.covariance(GAMMA, TAU)
    draws = 40_000
    generator = torch.Generator().manual_seed(2)
    w = net.anchor + torch.randn(draws, net.num_parameters, generator=generator) / GAMMA**0.5
    inside = torch.cat(
        [torch.arange(net.num_parameters)[net.slices[n]] for n in ("1.weight", "1.bias")]
    )
    w[:, inside] = torch.randn(draws, len(inside), generator=generator).double() / TAU**0.5
    f = torch.func.vmap(lambda one: net(one, data.inputs).flatten())(w)
    torch.testing.assert_close(found.outputs, torch.zeros(COUNT, 2).double())
    products = f[:, :, None] * f[:, None]
    error = products.std(0) / draws**0.5
    z = (products.mean(0) - expected) / error
    assert z.abs().max() < 5
    assert z.square().mean() < 1.5


def test_a_likelihood_that_is_not_normal_is_near_quadrature() -> None:
    """One weight and two classes: Laplace's −log Z against the integral over the weight."""
    net = network(nn.Linear(1, 1, bias=False))
    x = inputs(1)
    labels = (x[:, 0] + 0.5 > 0).long()

    class TwoClasses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(net.anchor.clone())

        def forward(self, rows: Tensor) -> Tensor:
            one = rows[:, 0] * self.weight
            return torch.stack([torch.zeros_like(one), one], 1)

    two = fe.FlatNetwork(TwoClasses().double())
    data = as_data((x, labels))
    assert isinstance(data, TensorData)
    found = tangents_of(two, data)
    one = GaussianProcess(found.outputs, found.covariance(GAMMA), categorical, labels, found.shape)
    start, places = float(net.anchor), x[:, 0].numpy()

    def integrand(w: float) -> float:
        sign = 2 * labels.numpy() - 1
        likelihood = np.exp(-np.logaddexp(0, -sign * w * places).sum())
        return float(
            likelihood * np.exp(-GAMMA / 2 * (w - start) ** 2) * (GAMMA / 2 / np.pi) ** 0.5
        )

    exact = -np.log(quad(integrand, -12, 12)[0])
    fitted = one.fit()
    assert fitted.free_energy == pytest.approx(exact, abs=0.03)
    # Left out one by one, as refits do it, by the mode's own approximation.
    for i in range(COUNT):
        rest = torch.arange(COUNT) != i
        own = as_data((x[rest], labels[rest]))
        assert isinstance(own, TensorData)
        again = tangents_of(two, own)
        w = mode(places[rest.numpy()], labels[rest].numpy(), start)
        predicted = fitted.left_out[i]
        assert float(predicted[1] - predicted[0]) == pytest.approx(w * places[i], abs=0.05)
        assert again.moving.shape == (22, 22)


def mode(places: Any, labels: Any, start: float) -> float:
    grid = np.linspace(-12, 12, 48_001)
    sign = (2 * labels - 1)[:, None]
    energy = (
        np.logaddexp(0, -sign * grid * places[:, None]).sum(0) + GAMMA / 2 * (grid - start) ** 2
    )
    return float(grid[energy.argmin()])


def test_many_tangents_come_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    net, data = network(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), source(3)
    whole, features = tangents_of(net, data).moving, tangents_of(net, data, "2").moving
    monkeypatch.setattr(tangents_module, "MOST_NUMBERS", 5 * 4 * net.num_parameters)
    torch.testing.assert_close(tangents_of(net, data).moving, whole)
    torch.testing.assert_close(tangents_of(net, data, "2").moving, features)


class Padded(nn.Module):
    """Looks at its data, as transformers do at their padding."""

    def __init__(self, inner: fe.FlatNetwork) -> None:
        super().__init__()
        self.inner = inner.module

    def forward(self, x: Tensor) -> Tensor:
        length = int((x != 0).any(0).sum())
        found: Tensor = self.inner(x[:, :length])
        return found


def test_a_forward_pass_that_looks_at_its_data_is_differentiated_one_by_one() -> None:
    net, data = network(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), source(3)
    looking = fe.FlatNetwork(Padded(net))
    torch.testing.assert_close(tangents_of(looking, data).moving, tangents_of(net, data).moving)
    found, expected = tangents_of(looking, data, "inner.2"), tangents_of(net, data, "2")
    torch.testing.assert_close(found.moving, expected.moving)
    torch.testing.assert_close(found.staying, expected.staying)


def test_few_probes_of_many_features_are_right_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    net, data = network(nn.Linear(3, 400), nn.Tanh(), nn.Linear(400, 2)), source(3)
    whole = tangents_of(net, data, "2").moving
    monkeypatch.setattr(tangents_module, "MOST_NUMBERS", 60 * net.num_parameters)
    found = tangents_of(net, data, "2")
    assert found.num_tangents == 60
    # Sixty of 400 directions at random: each variance is off by about √(2/60).
    ratio = found.moving.diagonal() / whole.diagonal()
    assert ratio.mean() == pytest.approx(1.0, abs=0.5)
    assert not torch.equal(found.moving, whole)


def states(count: int = 8) -> dict[str, dict[str, Tensor]]:
    """Linear networks, each farther from the one that made the targets than the last."""
    found = {}
    for k in range(count):
        found[f"at {k}"] = {"weight": torch.full((1, 4), 1.0 + 0.4 * k), "bias": torch.zeros(1)}
    return dict(reversed(found.items()))


def table(**options: Any) -> pd.DataFrame:
    x = inputs(4).float()
    y = x.sum(1, keepdim=True) + 0.1 * source(4).targets.float()
    names = ["linearized_free_energy", "linearized_score"]
    return fe.choose_checkpoint(
        states(), nn.Linear(4, 1), (x, y), by=names[0], criteria=names, likelihood="normal",
        progress_bar=False, **options,
    )  # fmt: skip


def test_eight_candidates_are_in_their_order_and_the_table_says_where() -> None:
    found = table()
    assert list(found.index) == [f"at {k}" for k in range(8)]
    place = found.attrs["linearized_at"]
    assert place["head_precision"] is None
    assert found.attrs["recommendation"].startswith("Take 'at 0'")
    assert "nats" in found.attrs["recommendation"]
    # Where the evidence says: no neighbour on the grid has more.
    value = found["linearized_free_energy"].mean()
    for factor in (10**0.5, 10**-0.5):
        there = table(localization=place["localization"] * factor)
        assert there["linearized_free_energy"].mean() > value


def test_what_cannot_be_linearised_is_a_note_and_no_row_is_lost() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 2), nn.Tanh()))
    x, labels = torch.randn(20, 4), torch.arange(20) % 2
    found = fe.choose_checkpoint(
        {"a": module.state_dict(), "b": module.state_dict()}, module, (x, labels), head="1",
        features="1", criteria=["linearized_score", "logme"], by="logme", progress_bar=False,
    )  # fmt: skip
    assert found["linearized_score"].isna().all()
    assert found["logme"].notna().all()
    assert all(
        "not linearised: the fresh head '1' is no torch.nn.Linear" in n for n in found["note"]
    )
    assert "linearized_at" not in found.attrs


def test_outputs_that_are_not_the_heads_and_too_many_of_them_are_refused() -> None:
    net, data = network(nn.Linear(3, 4), nn.Linear(4, 2), nn.Softmax(1)), source(3)
    with pytest.raises(ValueError, match="outputs are not those of the fresh head '1'"):
        tangents_of(net, data, "1")
    wide = network(nn.Linear(3, 100))
    with pytest.raises(ValueError, match="12 data of 100 outputs each have a covariance of 1200"):
        tangents_of(wide, data)


def test_a_likelihood_that_is_not_finite_is_refused() -> None:
    data = source(4)
    net = network(nn.Linear(4, 1))
    found = tangents_of(net, data)
    bad = torch.full_like(data.targets, float("nan"))
    one = GaussianProcess(found.outputs, found.covariance(GAMMA), normal, bad, found.shape)
    with pytest.raises(ValueError, match="not finite"):
        one.fit()
    broken = GaussianProcess(
        found.outputs, found.covariance(GAMMA) * float("nan"), normal, data.targets, found.shape
    )
    with pytest.raises(ValueError, match="−log Z is nan"):
        broken.fit()


def test_one_that_cannot_be_linearised_does_not_choose_for_the_others() -> None:
    """The tangents of the last are not finite; its outputs, and so its row, are."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T + 0 * self.weight.sum().abs().sqrt()

    rows = {
        "good": [1.0, 1.0, 1.0, 1.0],
        "near": [1.0, 0.9, 1.0, 1.0],
        "flat": [1.0, -1.0, 1.0, -1.0],
    }
    states = {name: {"weight": torch.tensor([row])} for name, row in rows.items()}
    x = inputs(4).float()
    y = x.sum(1, keepdim=True) + 0.1 * source(4).targets.float()
    found = fe.choose_checkpoint(
        states, Root(), (x, y), by="linearized_free_energy", criteria=["linearized_free_energy"],
        likelihood="normal", progress_bar=False,
    )  # fmt: skip
    assert set(found.index[:2]) == {"good", "near"}
    assert found["linearized_free_energy"][:2].notna().all()
    assert "not linearised: " in found["note"]["flat"]
    assert np.isnan(found["linearized_free_energy"]["flat"])
