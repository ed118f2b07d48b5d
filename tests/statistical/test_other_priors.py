"""Stage 1 under priors of one's own, at the default lengths and batch, against quadrature."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from cases.selection import OBSERVED, SD, Means, observed_weights
from ppl_fe.models import horseshoe
from ppl_fe.models.bayestune import Prior
from torch import Tensor, nn

import ppl_fe as fe

pytestmark = pytest.mark.slow


def half_normal_scales(anchor: Tensor) -> Tensor:
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones_like(anchor)).to_event(1))
    w: Tensor = pyro.sample("w", dist.Normal(anchor, scale).to_event(1))
    return w


def smooth_lasso(anchor: Tensor) -> Tensor:
    w: Tensor = pyro.sample("w", dist.Logistic(anchor, 0.15).to_event(1))
    return w


def found_by(prior: Prior) -> fe.Selection:
    return fe.select_parameters(
        fe.FlatNetwork(Means(len(OBSERVED))), (torch.zeros(1, 1), OBSERVED[None]),
        likelihood=observed_weights, rule=fe.BayesTune(prior=prior, num_chains=4), sparsity=0.2,
        progress_bar=False,
    )  # fmt: skip


def check(found: fe.Selection, exact: list[float]) -> None:
    assert found.r_hat is not None
    assert found.mcse is not None
    assert (found.r_hat < 1.05).all()
    for score, mcse, truth in zip(found.score, found.mcse, exact, strict=True):
        # An anharmonic direction may be off by the few per cent that the automatic step allows.
        assert abs(score.item() - truth) < 4.5 * mcse.item() + 0.025 * truth
        assert mcse < 0.12 * truth  # 400 draws of a scale whose sd is as large as its mean


def test_scales_of_weights_that_hang_on_them() -> None:
    scale = np.linspace(0, 6, 60_001)[1:]
    exact = []
    for y in OBSERVED.tolist():
        law = scipy.stats.norm.pdf(y, 0, np.hypot(SD, scale)) * np.exp(-0.5 * scale**2)
        exact.append(float((law * scale).sum() / law.sum()))
    check(found_by(half_normal_scales), exact)


def test_offsets_under_the_logistic_prior() -> None:
    w = np.linspace(-2, 3, 20_001)
    exact = []
    for y in OBSERVED.tolist():
        law = scipy.stats.logistic.pdf(w, 0, 0.15) * scipy.stats.norm.pdf(y, w, SD)
        exact.append(float((law * np.abs(w)).sum() / law.sum()))
    check(found_by(smooth_lasso), exact)


@pytest.mark.parametrize("prior", [horseshoe, smooth_lasso])
def test_a_regression_mixes_at_the_defaults(prior: Prior) -> None:
    torch.manual_seed(2)
    network = fe.FlatNetwork(nn.Linear(50, 1))
    x = torch.randn(300, 50)
    y = network(network.anchor, x)[:, 0] + 1.5 * x[:, 3] - 2.0 * x[:, 17] + torch.randn(300)
    found = fe.select_parameters(
        network, (x, y), likelihood="normal", rule=fe.BayesTune(prior=prior), sparsity=0.04,
        progress_bar=False,
    )  # fmt: skip
    assert found.mask.nonzero()[:, 0].tolist() == [3, 17]
    assert found.r_hat is not None
    median, worst = found.r_hat.median().item(), found.r_hat.max().item()
    print(f"{prior.__name__}: R-hat {median:.2f} in the median, {worst:.2f} at most")
    assert median < 1.05
    assert worst < 1.3
