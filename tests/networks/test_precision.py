"""bfloat16 for the network, float32 for the state; float64 throughout where the network is."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.inference.step.compile import trace
from ppl_fe.networks import half_precision

X = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (60,), generator=torch.Generator().manual_seed(2))


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def test_matrix_products_run_in_bfloat16_and_all_else_in_float32() -> None:
    network = fe.FlatNetwork(module(), autocast=torch.bfloat16)
    output = network(network.anchor, X)
    assert (network.anchor.dtype, output.dtype) == (torch.float32, torch.float32)
    exact = fe.FlatNetwork(module())(network.anchor, X)
    off = (output - exact).abs().max()
    assert 1e-5 < off < 0.05  # eight bits of mantissa: rounded, and no more than that

    def gradient(w: Tensor) -> list[Tensor]:
        return [torch.func.grad(lambda v: network(v, X).square().sum())(w)]

    graph = trace(gradient, [network.anchor])
    products = [n for n in graph.graph.nodes if "mm" in str(n.target)]
    assert products
    assert all(n.meta["val"].dtype == torch.bfloat16 for n in products)
    assert graph(network.anchor)[0].dtype == torch.float32


def test_a_copy_with_another_state_keeps_the_precision() -> None:
    network = fe.FlatNetwork(module(), autocast=torch.bfloat16)
    assert network.with_state(module().state_dict()).autocast == torch.bfloat16


def test_fine_tuning_runs_its_products_in_bfloat16_and_keeps_float32_weights() -> None:
    def tuned(autocast: torch.dtype | None) -> fe.FinetuneResult:
        network = fe.FlatNetwork(module(), autocast=autocast)
        return fe.finetune(
            network, (X, Y), method="full", learning_rate=0.01, num_steps=1, progress_bar=False
        )

    exact, low = tuned(None), tuned(torch.bfloat16)
    assert low.weights.dtype == torch.float32
    off = abs(low.history["loss"].iloc[0] - exact.history["loss"].iloc[0])
    assert 1e-7 < off < 0.02


def estimate(network: fe.FlatNetwork, x: Tensor) -> fe.FreeEnergyEstimate:
    return fe.estimate_free_energy(
        network,
        (x, Y),
        localization=10.0,
        num_chains=16,
        num_samples=50,
        warmup_steps=400,
        batch_size=None,
        progress_bar=False,
    )


@pytest.fixture(scope="module")
def plain() -> fe.FreeEnergyEstimate:
    return estimate(fe.FlatNetwork(module()), X)


@pytest.mark.parametrize(
    "precision", ["bfloat16", pytest.param("float64", marks=pytest.mark.thorough)]
)
def test_the_learning_coefficient_is_that_of_float32(
    precision: str, plain: fe.FreeEnergyEstimate
) -> None:
    if precision == "float64":
        other = estimate(fe.FlatNetwork(module().double()), X.double())
        assert other.draws.posterior["w"].dtype == "float64"
    else:
        other = estimate(fe.FlatNetwork(module(), autocast=torch.bfloat16), X)
        assert other.draws.posterior["w"].dtype == "float32"
    error = (plain.llc_mcse**2 + other.llc_mcse**2) ** 0.5
    assert abs(plain.llc - other.llc) < 4 * error
    assert 0 < error < 0.1  # where a wrong output would be off by nats


def test_a_slow_precision_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "slowness", lambda _: 48.2)
    with pytest.warns(UserWarning, match="takes 48 times as long as float32 .* leave autocast out"):
        fe.FlatNetwork(module(), autocast=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fe.FlatNetwork(module())
        monkeypatch.setattr(half_precision, "slowness", lambda _: 1.9)
        fe.FlatNetwork(module(), autocast=torch.bfloat16)


def test_slowness_is_a_ratio_of_two_times_and_measured_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half_precision.slowness.cache_clear()
    seconds = iter([3.0, 2.0])
    monkeypatch.setattr(half_precision, "_seconds", lambda *_: next(seconds))
    assert half_precision.slowness(torch.bfloat16) == 1.5
    assert half_precision.slowness(torch.bfloat16) == 1.5
    half_precision.slowness.cache_clear()
    monkeypatch.undo()
    assert half_precision.slowness(torch.bfloat16) > 0
