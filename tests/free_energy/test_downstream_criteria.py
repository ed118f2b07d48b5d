"""Criteria with labels, each against a second and direct route to the same number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ppl_fe.models import categorical, normal
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import multivariate_normal, spearmanr
from torch import Tensor

from ppl_fe.free_energy.downstream.jackknife import jackknife_error
from ppl_fe.free_energy.downstream.labels import folds
from ppl_fe.free_energy.downstream.logme import logme
from ppl_fe.free_energy.downstream.neighbours import neighbour_predictions
from ppl_fe.free_energy.downstream.pactran import pactran
from ppl_fe.free_energy.downstream.prediction_scores import score
from ppl_fe.free_energy.downstream.ridge_probe import ridge_predictions
from ppl_fe.free_energy.downstream.zero_shot import losses, zero_shot_score

CLASSES, COUNT = 3, 24


def problem(size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features that tell something of classes and of numbers, but not all."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(COUNT, size, generator=generator)
    labels = torch.arange(COUNT) % CLASSES
    features[:, 0] += labels.float()
    numbers = features[:, 0] + torch.randn(COUNT, generator=generator)
    return features, labels, numbers


def largest_evidence(features: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """max over (α, β) of log N(y; 0, I/β + FFᵀ/α) / n, by brute force."""
    n = len(y)

    def negative(logs: NDArray[np.float64]) -> float:
        alpha, beta = np.exp(np.clip(logs, -30, 30))
        covariance = np.eye(n) / beta + features @ features.T / alpha
        return -float(multivariate_normal.logpdf(y, np.zeros(n), covariance)) / n

    starts = [(a, b) for a in (-2.0, 2.0, 6.0) for b in (0.0, 2.0)]
    options: Any = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
    best: list[Any] = [
        minimize(negative, np.array(start), method="Nelder-Mead", options=options)
        for start in starts
    ]
    return -min(float(one.fun) for one in best)


@pytest.mark.parametrize("size", [4, pytest.param(15, marks=pytest.mark.thorough)])
def test_logme_is_the_largest_evidence(size: int) -> None:
    features, labels, numbers = problem(size)
    f = features.double().numpy()
    expected = [largest_evidence(f, (labels == k).double().numpy()) for k in range(CLASSES)]
    assert logme(features, labels) == pytest.approx(float(np.mean(expected)), abs=1e-6)
    assert logme(features, numbers) == pytest.approx(
        largest_evidence(f, numbers.double().numpy()), abs=1e-6
    )


def test_logme_of_more_features_than_labels_is_finite_and_rotates_with_them() -> None:
    features, labels, _ = problem(40)
    value = logme(features, labels)
    assert math.isfinite(value)
    rotation = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(1)))[0]
    assert logme(features @ rotation, labels) == pytest.approx(value, abs=1e-5)
    # Names of classes do not matter, nor do those that no label has.
    assert logme(features, 5 * labels + 2) == value


def refitted(features: Tensor, numbers: Tensor, penalty: float) -> Tensor:
    """Ridge regression with a free intercept, solved anew without each row."""
    predictions = []
    for i in range(len(features)):
        kept = torch.arange(len(features)) != i
        design = torch.cat([features[kept].double(), torch.ones(len(features) - 1, 1)], 1)
        weights = torch.diag(torch.tensor([penalty] * features.shape[1] + [0.0]).double())
        solved = torch.linalg.solve(design.T @ design + weights, design.T @ numbers[kept].double())
        predictions.append(torch.cat([features[i].double(), torch.ones(1)]) @ solved)
    return torch.stack(predictions)


@pytest.mark.parametrize("size", [4, 40])
@pytest.mark.parametrize("penalty", [0.3, 30.0])
def test_the_ridge_probe_leaves_one_out_as_refits_do(size: int, penalty: float) -> None:
    features, labels, numbers = problem(size)
    expected = refitted(features, numbers, penalty)
    found = ridge_predictions(features, numbers, penalty)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    columns = torch.nn.functional.one_hot(labels).double()
    by_class = refitted(features, columns, penalty).argmax(1)
    assert torch.equal(ridge_predictions(features, labels, penalty), by_class)


def test_the_ridge_probe_takes_the_penalty_of_the_least_error_left_out() -> None:
    features, _, numbers = problem(6)
    scale = float(features.double().square().sum(1).mean())
    tried = [ridge_predictions(features, numbers, scale * 10.0**k) for k in range(-4, 5)]
    errors = [float((one - numbers).square().sum()) for one in tried]
    assert torch.equal(ridge_predictions(features, numbers), tried[int(np.argmin(errors))])


def test_neighbours_leave_one_out_as_a_loop_does() -> None:
    features, labels, numbers = problem(5)
    unit = torch.nn.functional.normalize(features.double())
    for i in range(COUNT):
        likeness = unit @ unit[i]
        likeness[i] = -2.0
        nearest = likeness.argsort(descending=True)[:5]
        votes = labels[nearest].bincount(minlength=CLASSES)
        assert votes[neighbour_predictions(features, labels)[i]] == votes.max()
        mean = float(neighbour_predictions(features, numbers)[i])
        assert mean == pytest.approx(float(numbers[nearest].double().mean()), rel=1e-9)
    # Of two labels there is one neighbour, the other.
    assert neighbour_predictions(features[:2], torch.tensor([0, 1])).tolist() == [1, 0]


def test_pactran_is_its_formula_at_the_optimum() -> None:
    features, labels, _ = problem(4)
    f = features.double().numpy() - features.double().numpy().mean(0)
    n, size = f.shape
    y = np.eye(CLASSES)[labels.numpy()]

    def objective(theta: NDArray[np.float64]) -> float:
        w = theta.reshape(size + 1, CLASSES)
        loss = -float((y * log_softmax(f @ w[:-1] + w[-1], axis=1)).sum()) / n
        return float(loss + 0.5 * float(np.square(w[:-1]).sum()) / n)

    found = minimize(objective, np.zeros((size + 1) * CLASSES), options={"gtol": 1e-8})
    w = found.x.reshape(size + 1, CLASSES)
    p = softmax(f @ w[:-1] + w[-1], axis=1)
    # Second derivatives entry by entry, as the authors' release adds them up.
    of_weights = np.square(f).T @ (p - p**2) + 1 / n
    trace = of_weights.sum() + (p - p**2).sum()
    count = size * CLASSES
    expected = found.fun + 0.5 * count / n * (10 / size) * math.log(trace * n / count)
    assert pactran(features, labels) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="integer classes"):
        pactran(features, features[:, 0])


def test_scores_and_their_errors() -> None:
    _, labels, numbers = problem(4)
    guessed = labels.clone()
    guessed[:6] = (guessed[:6] + 1) % CLASSES
    found = score(guessed, labels)
    assert found.value == 0.75
    assert found.error == pytest.approx(math.sqrt(0.75 * 0.25 / (COUNT - 1)))
    noisy = numbers + torch.randn(COUNT, generator=torch.Generator().manual_seed(3))
    expected = spearmanr(noisy, numbers).statistic
    assert score(noisy[:, None], numbers).value == pytest.approx(expected, rel=1e-9)
    assert 0.02 < score(noisy, numbers).error < 0.4
    assert score(torch.zeros(COUNT), numbers).value == 0.0


def test_the_jackknife_knows_the_error_of_a_mean() -> None:
    x = torch.randn(400, generator=torch.Generator().manual_seed(4))
    # The standard error of a standard error over ten groups is 1/√18 of it.
    ratio = jackknife_error(lambda rows: x[rows].mean().item(), 400) / (x.std().item() / 20)
    assert abs(ratio - 1) < 3 / math.sqrt(18)
    assert math.isnan(jackknife_error(lambda rows: 1.0, 2))
    assert math.isnan(jackknife_error(lambda rows: math.inf, 9))


def test_zero_shot_numbers_are_those_of_the_likelihood() -> None:
    _, labels, numbers = problem(4)
    outputs = torch.randn(COUNT, CLASSES, generator=torch.Generator().manual_seed(5))
    expected = torch.nn.functional.cross_entropy(outputs, labels, reduction="none")
    torch.testing.assert_close(losses(categorical, outputs, labels), expected)
    right = float((outputs.argmax(1) == labels).double().mean())
    assert zero_shot_score(outputs, labels).value == right
    squares = 0.5 * (outputs[:, 0] - numbers).square() + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(losses(normal, outputs[:, :1], numbers), squares)


def test_folds_share_the_classes_out() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 5)
    fold = folds(labels, 5)
    for k in range(5):
        assert labels[fold == k].bincount(minlength=3).tolist() == [2, 1, 1]
    assert folds(torch.tensor([0, 1]), 5).tolist() == [0, 1]
