"""Fine-tuning: the right optimum, frozen weights frozen, early stopping, deltas of the result."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases.tuning import HEAD, LABELS, N, X, head_mask, module, network, some_mask, tune
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ppl_fe as fe
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.objective import Objective, non_finite_layer
from ppl_fe.finetuning.train.finetune_result import FinetuneResult
from ppl_fe.finetuning.train.training import finetune
from ppl_fe.networks.delta_format import DeltaError
from ppl_fe.networks.deltas import apply_delta, save_delta
from ppl_fe.networks.flat import FlatNetwork


@pytest.mark.parametrize(("optimizer", "rate", "steps"), [("adamw", 0.05, 800), ("sgd", 0.05, 300)])
def test_selected_weights_reach_their_least_squares_solution(
    optimizer: str, rate: float, steps: int
) -> None:
    net = FlatNetwork(nn.Linear(4, 1).double())
    x = X.double()
    y = x @ torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64) + torch.sin(3 * x[:, 0])
    mask = torch.tensor([True, False, True, False, True])
    rest = y - x[:, [1, 3]] @ net.anchor[[1, 3]]
    columns = torch.cat([x[:, [0, 2]], torch.ones(N, 1, dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(columns, rest[:, None]).solution.squeeze(1)
    tuned = tune(
        net,
        (x, y),
        likelihood="normal",
        mask=mask,
        optimizer=optimizer,
        learning_rate=rate,
        num_steps=steps,
        batch_size=N,
    )
    torch.testing.assert_close(tuned.weights[mask], solution, rtol=1e-6, atol=1e-6)
    assert torch.equal(tuned.weights[~mask], net.anchor[~mask])
    # The loss is the negative log-likelihood a datum, constants included.
    residual = y - (x @ tuned.weights[:4] + tuned.weights[4])
    loss = 0.5 * residual.square().mean().item() + 0.5 * math.log(2 * math.pi)
    assert tuned.history["loss"].iloc[-1] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("head", [None, HEAD])
def test_frozen_weights_stay_as_they_were(
    optimizer: str, weight_decay: float, head: str | None
) -> None:
    net = network()
    given = module().state_dict()
    tuned = tune(net, optimizer=optimizer, weight_decay=weight_decay, head=head)
    trained = some_mask() if head is None else some_mask() | head_mask()
    assert torch.equal(tuned.weights[~trained], net.anchor[~trained])
    assert (tuned.weights != net.anchor)[trained].all()
    assert torch.equal(tuned.indices, some_mask().nonzero().squeeze(1))
    assert sorted(tuned.head) == ([] if head is None else ["2.bias", "2.weight"])
    for name, tensor in tuned.head.items():
        assert torch.equal(tensor.reshape(-1), tuned.weights[net.slices[name]])
    # The network given is not changed.
    assert all(torch.equal(given[name], t) for name, t in net.module.state_dict().items())
    assert torch.equal(net.anchor, network().anchor)


def test_full_and_head_only_are_the_same_call() -> None:
    full = tune(method="full", head=HEAD)
    assert (full.weights != network().anchor).all()
    assert torch.equal(full.mask, ~head_mask())
    assert torch.equal(
        full.weights, tune(mask=torch.ones_like(some_mask()), head=HEAD, method="mask").weights
    )
    only = tune(method="head", head=HEAD)
    assert torch.equal(only.weights != network().anchor, head_mask())
    assert not only.mask.any()
    assert len(only.indices) == 0


def test_the_head_never_counts_towards_the_mask() -> None:
    inside = some_mask() | head_mask()
    tuned = tune(mask=inside, head=HEAD)
    assert torch.equal(tuned.mask, some_mask())
    assert torch.equal(tuned.weights, tune(mask=some_mask(), head=HEAD).weights)


def test_equal_seeds_give_equal_weights_and_the_global_state_stays() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = tune(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(first.weights, tune(seed=3).weights)
    assert not torch.equal(first.weights, tune(seed=4).weights)
    assert first.history.equals(tune(seed=3).history)


def test_every_form_of_data_trains_the_same_network() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module()

        def forward(self, features: Tensor) -> Tensor:
            out: Tensor = self.inner(features)
            return out

    tuned = tune(batch_size=N)
    by_key = tune(FlatNetwork(Keyword()), {"features": X, "labels": LABELS}, batch_size=N)
    loader = DataLoader(TensorDataset(X, LABELS), batch_size=N)
    for other in (by_key, tune(data=loader), tune(data=TensorDataset(X, LABELS), batch_size=N)):
        torch.testing.assert_close(other.weights, tuned.weights)
    assert not torch.equal(tuned.weights, network().anchor)


def test_the_learning_rate_follows_the_schedule() -> None:
    rates = tune(num_steps=100, learning_rate=0.1).history["learning_rate"].to_numpy()
    assert rates.argmax() == 5
    assert rates.max() == pytest.approx(0.1)
    np.testing.assert_allclose(np.diff(rates[:6]), 0.1 / 6, rtol=1e-9)
    np.testing.assert_allclose(np.diff(rates[6:]), -0.1 / 94, rtol=1e-9)
    assert rates[-1] == pytest.approx(0.1 / 94)
    steady = tune(num_steps=100, learning_rate=0.1, schedule="constant").history["learning_rate"]
    assert (steady == 0.1).all()


def test_epochs_are_passes_over_the_data() -> None:
    history = tune(num_steps=None, num_epochs=4, batch_size=16).history
    assert history["step"].tolist() == list(range(1, 13))  # 3 whole batches of 16 in 60 rows
    assert len(tune(num_steps=None, batch_size=20).history) == 9
    assert tune(batch_size=1000).history["step"].iloc[-1] == 20
    passes: dict[str, Any] = {"num_steps": None, "num_epochs": 4}
    assert len(tune(**passes).history) == 12  # the default
    assert len(tune(**passes, batch_size=None).history) == 4
    rates = tune(num_steps=1, learning_rate=0.1).history["learning_rate"]
    assert rates.tolist() == [0.1]


def test_early_stopping_keeps_the_best_state() -> None:
    # Wrong labels to learn by heart: the validation loss must rise sooner or later.
    noise = torch.randint(2, (N,), generator=torch.Generator().manual_seed(83))
    held_out = (X, LABELS)
    tuned = tune(
        data=(X, torch.where(torch.arange(N) < 25, noise, LABELS)),
        method="full",
        learning_rate=0.05,
        num_steps=2000,
        validation=held_out,
        evaluate_every=10,
        patience=4,
    )
    looks = tuned.history.dropna(subset="validation_loss").set_index("step")["validation_loss"]
    assert looks.index.tolist() == list(range(0, looks.index[-1] + 1, 10))
    assert tuned.step == looks.idxmin()
    assert looks.index[-1] == tuned.step + 40 < 2000
    with torch.no_grad():
        logits = network()(tuned.weights, X)
    assert nn.functional.cross_entropy(logits, LABELS).item() == pytest.approx(looks.min())
    right = (logits.argmax(-1) == LABELS).float().mean().item()
    accuracy = tuned.history.set_index("step")["validation_accuracy"]
    assert accuracy[tuned.step] == pytest.approx(right)
    assert accuracy.notna().sum() == len(looks)


def test_validation_never_ends_worse_than_the_start() -> None:
    anchor_is_best = network()
    with torch.no_grad():
        labels = anchor_is_best(anchor_is_best.anchor, X).argmax(-1)
    tuned = tune(data=(X, 1 - labels), validation=(X, labels), num_steps=50)
    assert tuned.step == 0
    assert torch.equal(tuned.weights, anchor_is_best.anchor)
    assert len(tuned.history) < 50


def test_the_last_step_is_looked_at_too() -> None:
    tuned = tune(num_steps=7, validation=(X, LABELS), evaluate_every=5)
    looked = tuned.history.dropna(subset="validation_loss")["step"].tolist()
    assert looked == [0, 5, 7]


def test_a_delta_carries_the_result_to_the_module_it_came_from(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"head": HEAD},
        {"method": "full", "head": HEAD},
        {"method": "head", "head": HEAD},
    ]
    for number, options in enumerate(kinds):
        tuned = tune(**options)
        path = tmp_path / f"{number}.safetensors"
        save_delta(tuned, path)
        given = module()
        apply_delta(given, path)
        assert torch.equal(FlatNetwork(given).anchor, tuned.weights)
        assert torch.equal(given(X), network()(tuned.weights, X))


def test_a_delta_is_refused_once_the_checkpoint_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_delta(tune(head=HEAD), path)
    changed = module()
    with torch.no_grad():
        changed.get_parameter("0.bias")[0] += 1e-6
    with pytest.raises(DeltaError, match="belongs to other weights"):
        apply_delta(changed, path)
    fresh_head = module()
    nn.init.zeros_(fresh_head.get_parameter("2.weight"))
    apply_delta(fresh_head, path)


def test_the_result_predicts_gives_its_module_and_saves_its_delta(tmp_path: Path) -> None:
    tuned = tune(head=HEAD)
    expected = network()(tuned.weights, X)
    assert torch.equal(tuned.predict(X), expected)
    assert not tuned.predict(X).requires_grad
    assert torch.equal(tuned.module()(X), expected)
    given = tuned.module()
    nn.init.zeros_(given.get_parameter("0.weight"))  # a copy
    assert torch.equal(tuned.predict(X), expected)
    given.train()(X).sum().backward()  # that can be trained on
    assert given.get_parameter("2.bias").grad is not None
    assert not tuned.network.module.training
    tuned.save(tmp_path / "a")
    given = module()
    apply_delta(given, tmp_path / "a")
    assert torch.equal(given(X), expected)


def test_predictions_in_batches_are_those_of_all_rows() -> None:
    tuned = tune(head=HEAD)
    expected = tuned.predict(X)
    sizes: list[int] = []
    tuned.network.module.register_forward_hook(lambda _, __, out: sizes.append(len(out)))
    found = tuned.predict(X.numpy(), batch_size=25)
    assert sizes == [25, 25, 10]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(tuned.predict({"input": X}, batch_size=7), expected)
    assert tuned.predict(X[:0]).shape == (0, 2)
    with pytest.raises(TypeError, match="'inputs' must be a tensor or numpy array, got list"):
        tuned.predict([[1.0]])
    with pytest.raises(ValueError, match=r"equal number, got {'input': 60, 'mask': 3}"):
        tuned.predict({"input": X, "mask": X[:3]})
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        tuned.predict(X, batch_size=0)


def test_old_names_of_results_and_errors_work_and_warn() -> None:
    for old, new in (
        ("Tuned", fe.FinetuneResult),
        ("NotFiniteError", fe.DivergedError),
        ("StageOneError", fe.DivergedError),
    ):
        with pytest.warns(DeprecationWarning, match=f"{old} is called ppl_fe"):
            assert getattr(fe, old) is new
        with pytest.warns(DeprecationWarning, match=f"{old} is called ppl_fe"):
            assert getattr(importlib.import_module("ppl_fe.finetuning"), old) is new
    tuned = tune()
    with pytest.warns(DeprecationWarning, match="FinetuneResult.weights now"):
        assert tuned.vector is tuned.weights


def test_a_misspelt_argument_is_named_before_any_work() -> None:
    with pytest.raises(TypeError, match=r"finetune\(\) has no .* learning_rate here"):
        tune(lr=0.1)
    with pytest.raises(TypeError, match=r"save_adapter\(\) has no argument 'folde'.* folder"):
        fe.save_adapter(tune(), folde="a")  # type: ignore[call-arg]


def test_the_progress_bar_shows_loss_and_learning_rate(capsys: pytest.CaptureFixture[str]) -> None:
    tune()
    assert capsys.readouterr().err == ""
    tuned = tune(progress_bar=True, schedule="constant")
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert f"loss={tuned.history['loss'].iloc[-1]:.4f}, learning rate=5.0e-02" in shown


class Breaks(nn.Module):
    """A middle layer that gives NaN once its weight has moved far enough."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sqrt(1 - self.weight) + self.weight


def breaking() -> FlatNetwork:
    return FlatNetwork(nn.Sequential(nn.Identity(), Breaks(), nn.Identity()))


def run_breaking(steps: int, **options: Any) -> FinetuneResult:
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
    with pytest.raises(DivergedError, match=r"loss is nan at step 4, first in .* '1'; lower") as e:
        run_breaking(50)
    # With momentum the weight passes 1 at the third update: the state after two has a finite loss.
    assert e.value.tuned.step == 2
    assert torch.equal(e.value.tuned.weights, run_breaking(2).weights)
    assert 0 < e.value.tuned.weights.item() < 1
    assert e.value.tuned.history["loss"].iloc[:-1].notna().all()


def test_a_broken_last_step_is_not_passed_off_as_a_result() -> None:
    data = (torch.zeros(8, 1), torch.full((8,), 10.0))
    with pytest.raises(DivergedError, match=r"validation loss is nan after step 3, .* '1'") as e:
        run_breaking(3, validation=data, evaluate_every=1)
    assert e.value.tuned.step == 2
    assert torch.equal(e.value.tuned.weights, run_breaking(2).weights)


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
    with pytest.raises(DivergedError, match=r"step 1 the gradient is not finite in 1\.scale") as e:
        tune(net, (X[:, :1], X[:, 0]), mask=torch.tensor([True]), likelihood="normal")
    assert e.value.tuned.step == 0
    assert torch.equal(e.value.tuned.weights, net.anchor)


def test_an_overflowing_update_is_not_passed_off_as_a_result() -> None:
    net = FlatNetwork(nn.Linear(1, 1, bias=False))
    data = (torch.ones(8, 1), torch.full((8,), 1e3))
    with pytest.raises(DivergedError, match="weights are not finite after step 1") as e:
        tune(
            net, data, mask=torch.tensor([True]), likelihood="normal", optimizer="sgd",
            learning_rate=1e38, num_steps=1,
        )  # fmt: skip
    assert torch.equal(e.value.tuned.weights, net.anchor)


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
    ({"learning_rate": -1.0}, ValueError, "learning_rate must be a positive number"),
    ({"learning_rate": math.nan}, ValueError, "learning_rate must be a positive number"),
    ({"weight_decay": -0.1}, ValueError, "weight_decay must be >= 0"),
    ({"num_epochs": 2}, ValueError, "num_steps=20 and num_epochs=2: give one"),
    ({"num_steps": 0}, ValueError, "num_steps must be an integer of at least 1"),
    ({"patience": 0}, ValueError, "patience must be an integer of at least 1"),
    ({"batch_size": "all"}, ValueError, "batch_size must be a positive integer or None for all"),
    ({"batch_size": 0}, ValueError, "batch_size must be a positive integer"),
    ({"schedule": "cosine"}, ValueError, "schedule must be 'linear' or 'constant'"),
    ({"seed": -1}, ValueError, "seed must be an integer of at least 0"),
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
