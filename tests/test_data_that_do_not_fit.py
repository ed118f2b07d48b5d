"""Data of another dtype or shape than the network takes: each entry point names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases.tuning import LABELS, X, module, network, some_mask
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ppl_fe as fe
from ppl_fe.networks.check_forward import try_inputs

SHORT: dict[str, Any] = {"num_samples": 12, "warmup_steps": 5, "num_chains": 2}
Call = Callable[..., Any]


def estimate(data: Any, **options: Any) -> Any:
    net = options.pop("net", network())
    return fe.estimate_free_energy(net, data, progress_bar=False, **SHORT, **options)


def rank(data: Any, **options: Any) -> Any:
    net = options.pop("net", network()).module
    states = {"one": net.state_dict()}
    return fe.rank_checkpoints(states, net, data, progress_bar=False, **SHORT, **options)


def select(data: Any, **options: Any) -> Any:
    net = options.pop("net", network())
    quick = fe.BayesTune(num_samples=5, warmup_steps=5)
    settings = {"rule": quick, "sparsity": 0.1, **options}
    return fe.select_parameters(net, data, progress_bar=False, **settings)


def select_by_rule(data: Any, **options: Any) -> Any:
    return select(data, rule="gradient_squared", **options)


def tune(data: Any, **options: Any) -> Any:
    net = options.pop("net", network())
    mask = some_mask() if net.num_parameters == 37 else torch.ones(5, dtype=torch.bool)
    return fe.finetune(net, data, mask=mask, num_steps=2, progress_bar=False, **options)


EVERYWHERE = pytest.mark.parametrize("call", [estimate, rank, select, select_by_rule, tune])
DOUBLES = (
    r"^data: torch\.float64 in inputs, where the network takes torch\.float32; give "
    r"tensor\.to\(torch\.float32\), or array\.astype\('float32'\)"
)


@EVERYWHERE
@pytest.mark.parametrize(
    "data", [(X.double(), LABELS), (X.double().numpy(), LABELS.numpy())], ids=["tensor", "array"]
)
def test_inputs_in_double_precision_are_named(call: Call, data: Any) -> None:
    with pytest.raises(ValueError, match=DOUBLES):
        call(data)


@EVERYWHERE
def test_so_are_a_loader_s(call: Call) -> None:
    loader = DataLoader(TensorDataset(X.double(), LABELS), batch_size=20)
    with pytest.raises(ValueError, match=DOUBLES):
        call(loader, **({"batch_size": 20} if call in (estimate, rank) else {}))


@EVERYWHERE
def test_a_network_in_double_precision_asks_for_it(call: Call) -> None:
    net = fe.FlatNetwork(module().double())
    with pytest.raises(ValueError, match=r"torch\.float32 in inputs, .* takes torch\.float64; "):
        call((X, LABELS), net=net)


@EVERYWHERE
def test_inputs_of_another_width_come_with_their_shape(call: Call) -> None:
    with pytest.raises(
        ValueError, match=r"^data: the network fails on inputs of shape \(\d, 3\): "
    ):
        call((X[:, :3], LABELS))


@pytest.mark.parametrize("call", [estimate, select, tune])
def test_targets_in_double_precision_are_fine(call: Call) -> None:
    net, data = fe.FlatNetwork(nn.Linear(4, 1)), (X, X[:, 0].double())
    call(data, net=net, likelihood="normal", **({"sparsity": 0.4} if call is select else {}))


def test_other_data_are_named_by_their_argument() -> None:
    other = (X.double(), LABELS)
    with pytest.raises(ValueError, match=r"^validation: torch\.float64 in inputs"):
        tune((X, LABELS), validation=other)
    with pytest.raises(ValueError, match=r"^held_out: torch\.float64 in inputs"):
        rank((X, LABELS), held_out=other)
    with pytest.raises(ValueError, match=DOUBLES):
        rank(other, baselines=True)


def test_targets_that_a_likelihood_of_one_s_own_fails_on() -> None:
    def bernoulli(output: Tensor, targets: Tensor) -> object:
        return pyro.sample("y", dist.Bernoulli(logits=output[:, 0]), obs=targets)

    net = fe.FlatNetwork(nn.Linear(4, 1))
    with pytest.raises(
        ValueError,
        match=r"output of torch\.float32, shape .* targets of torch\.int64, shape .*"
        r"targets\.to\(torch\.float32\) may help",
    ):
        tune((X, LABELS), net=net, likelihood=bernoulli)
    tune((X, LABELS.float()), net=net, likelihood=bernoulli)


def test_a_frame_is_told_how_to_become_an_array() -> None:
    with pytest.raises(TypeError, match=r"got DataFrame; .*frame\.to_numpy\('float32'\)"):
        estimate((pd.DataFrame(X.numpy()), LABELS))


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.line = nn.Embedding(3, 2), nn.Linear(4, 2)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        out: Tensor = self.embedding(ids).mean(-2) + self.line(values)
        return out


def test_only_what_has_to_change_is_named() -> None:
    net = Embedded()
    ids, values = torch.tensor([[0, 2]]), torch.zeros(1, 4)

    def call(given: dict[str, Tensor]) -> Tensor:
        out: Tensor = net(**given)
        return out

    assert try_inputs(call, {"ids": ids, "values": values}, torch.float32).shape == (1, 2)
    with pytest.raises(ValueError, match=r"^held: torch\.float64 in values, where .*float32"):
        try_inputs(call, {"ids": ids, "values": values.double()}, torch.float32, "held")
    with pytest.raises(ValueError, match=r"^data: torch\.float32 in ids, where .*torch\.int64"):
        try_inputs(lambda given: net.embedding(given["ids"]), {"ids": ids.float()}, torch.float32)
    with pytest.raises(ValueError, match=r"fails on ids of shape \(1, 2\): TypeError: .*'values'"):
        try_inputs(call, {"ids": ids}, torch.float32)
