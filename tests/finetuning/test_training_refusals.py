"""Fine-tuning that cannot go on, or cannot begin: one clear error, and the last good state."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_tuning import LABELS, N, X, some_mask, tune
from torch import Tensor, nn

from ppl_fe.finetuning.objective import Objective, non_finite_layer
from ppl_fe.finetuning.training import finetune
from ppl_fe.finetuning.tuned import NotFiniteError, Tuned
from ppl_fe.networks.flat import FlatNetwork


class Breaks(nn.Module):
    """A middle layer that gives NaN once its weight has moved far enough."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sqrt(1 - self.weight) + self.weight


def breaking() -> FlatNetwork:
    return FlatNetwork(nn.Sequential(nn.Identity(), Breaks(), nn.Identity()))


def run_breaking(steps: int, **options: Any) -> Tuned:
    return finetune(
        breaking(),
        (torch.zeros(8, 1), torch.full((8,), 10.0)),
        likelihood="normal",
        mask=torch.tensor([True]),
        optimizer="sgd",
        schedule="constant",
        learning_rate=0.03,
        num_steps=steps,
        progress_bar=False,
        **options,
    )


def test_a_loss_that_is_not_finite_names_step_and_layer_and_keeps_the_last_good_state() -> None:
    with pytest.raises(NotFiniteError, match=r"loss is nan at step 4, first in .* '1'; lower") as e:
        run_breaking(50)
    # With momentum the weight passes 1 at the third update: the state after two has a finite loss.
    assert e.value.tuned.step == 2
    assert torch.equal(e.value.tuned.vector, run_breaking(2).vector)
    assert 0 < e.value.tuned.vector.item() < 1
    assert e.value.tuned.history["loss"].iloc[:-1].notna().all()


def test_a_broken_last_step_is_not_passed_off_as_a_result() -> None:
    data = (torch.zeros(8, 1), torch.full((8,), 10.0))
    with pytest.raises(NotFiniteError, match=r"validation loss is nan after step 3, .* '1'") as e:
        run_breaking(3, validation=data, evaluate_every=1)
    assert e.value.tuned.step == 2
    assert torch.equal(e.value.tuned.vector, run_breaking(2).vector)


def test_where_a_loss_goes_wrong_is_told_apart() -> None:
    objective = Objective("normal", torch.device("cpu"))
    line = nn.Linear(1, 1)
    rows = (torch.ones(2, 1), torch.ones(2))
    huge = (rows[0], torch.full((2,), 1e30))
    assert non_finite_layer(line, objective, [rows, huge]) == "in the likelihood alone"
    nn.init.constant_(line.weight, 1e30)
    far = (torch.full((2, 1), 1e30), torch.ones(2))
    near = (torch.zeros(2, 1), torch.ones(2))
    assert non_finite_layer(line, objective, [far, near]) == "first in the output of the network"
    nn.init.constant_(line.weight, math.inf)
    assert non_finite_layer(line, objective, [rows]) == "first in the output of the network"
    deep = nn.Sequential(nn.Sequential(nn.Identity(), line), nn.ReLU())
    assert non_finite_layer(deep, objective, [rows]) == "first in the output of layer '0.1'"
    assert not any(layer._forward_hooks for layer in deep.modules())


def test_a_gradient_that_is_not_finite_names_the_parameter() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sqrt(self.scale)  # 0, with an infinite slope

    net = FlatNetwork(nn.Sequential(nn.Identity(), Root()))
    with pytest.raises(NotFiniteError, match=r"step 1 the gradient is not finite in 1\.scale") as e:
        tune(net, (X[:, :1], X[:, 0]), mask=torch.tensor([True]), likelihood="normal")
    assert e.value.tuned.step == 0
    assert torch.equal(e.value.tuned.vector, net.anchor)


def test_an_overflowing_update_is_not_passed_off_as_a_result() -> None:
    net = FlatNetwork(nn.Linear(1, 1, bias=False))
    data = (torch.ones(8, 1), torch.full((8,), 1e3))
    with pytest.raises(NotFiniteError, match="weights are not finite after step 1") as e:
        tune(
            net, data, mask=torch.tensor([True]), likelihood="normal", optimizer="sgd",
            learning_rate=1e38, num_steps=1,
        )  # fmt: skip
    assert torch.equal(e.value.tuned.vector, net.anchor)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"mask": torch.ones(3, dtype=torch.bool)}, ValueError, r"mask must have shape \(37,\)"),
    ({"mask": torch.zeros(37, dtype=torch.bool)}, ValueError, "False everywhere"),
    ({"mask": torch.ones(37)}, TypeError, "mask must be of booleans"),
    ({"mask": None}, ValueError, "method='mask' needs a mask"),
    ({"method": "full", "mask": some_mask()}, ValueError, "method='full' takes no mask"),
    ({"method": "head"}, ValueError, "needs head="),
    ({"method": "adapters"}, ValueError, "method must be one of"),
    ({"head": "classifier"}, ValueError, "head='classifier' names no parameter"),
    ({"optimizer": "lion"}, ValueError, "optimizer must be"),
    ({"optimizer": "sgd", "learning_rate": None}, ValueError, "no default for sgd"),
    ({"learning_rate": -1.0}, ValueError, "learning_rate must be > 0"),
    ({"learning_rate": math.nan}, ValueError, "learning_rate must be > 0"),
    ({"weight_decay": -0.1}, ValueError, "weight_decay must be >= 0"),
    ({"num_epochs": 2}, ValueError, "num_steps=20 and num_epochs=2: give one"),
    ({"num_steps": 0}, ValueError, "num_steps must be at least 1"),
    ({"patience": 0}, ValueError, "patience must be at least 1"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"schedule": "cosine"}, ValueError, "schedule must be 'linear' or 'constant'"),
    ({"seed": -1}, ValueError, "seed must be a non-negative"),
    ({"likelihood": "poisson"}, ValueError, "likelihood must be one of"),
    ({"data": (X, torch.zeros(N, dtype=torch.long))}, ValueError, "one class only, 0"),
    ({"data": (X, LABELS + 1)}, ValueError, "allowed are 0 to 1"),
    ({"data": (X, LABELS.float())}, TypeError, "integer class labels"),
    ({"data": (X / 0, LABELS)}, ValueError, "NaN or infinite values"),
    ({"validation": (X, LABELS + 1)}, ValueError, "allowed are 0 to 1"),
    ({"validation": (X[:3], LABELS)}, ValueError, "lengths disagree"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED, ids=[m for _, _, m in REFUSED])
def test_bad_input_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tune(**options)


def test_likelihoods_that_cannot_be_trained_are_refused() -> None:
    def latent(output: Tensor, targets: Tensor) -> None:
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        pyro.sample("y", dist.Normal(output.squeeze(-1), sigma), obs=targets)

    net, data = FlatNetwork(nn.Linear(4, 1)), (X, X[:, 0])
    mask = torch.ones(5, dtype=torch.bool)
    with pytest.raises(ValueError, match="latent site 'sigma'"):
        tune(net, data, mask=mask, likelihood=latent)
    with pytest.raises(ValueError, match="no observed site"):
        tune(net, data, mask=mask, likelihood=lambda output, targets: None)
