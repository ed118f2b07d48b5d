"""One scale for a row or a layer: the draws, and the posterior of a conjugate network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases.selection import SD, Rows, observed_weights, select
from cases.tuning import LABELS, X, network
from exact import laplace_gamma_group
from ppl_fe.models import LaplaceGamma, horseshoe
from scipy.special import ndtr
from torch import Tensor, nn

from ppl_fe.finetuning.bayestune.grouped import draw_unit, log_view
from ppl_fe.finetuning.selection import Selection
from ppl_fe.networks.flat import FlatNetwork

COPIES = 60


@pytest.mark.parametrize("rate", [1e-3, 0.3, 2.0, 50.0, 1e4, 1e20])
@pytest.mark.parametrize("mean", [0.0, 0.5, 3.0, -8.0])
def test_views_and_draws_against_quadrature(mean: float, rate: float) -> None:
    sizes = np.geomspace(1e-9 / rate, min(60 / rate, 60.0) + abs(mean), 400_001)
    u = np.concatenate([-sizes[::-1], [0.0], sizes])
    density = 0.5 * rate * np.exp(-rate * np.abs(u) - 0.5 * (mean - u) ** 2)
    below = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(u))])
    found = log_view(torch.tensor(mean), torch.tensor(rate)).item()
    assert found == pytest.approx(math.log(below[-1]), abs=2e-5)
    noise = torch.linspace(-4, 4, 2001)
    drawn = draw_unit(torch.full_like(noise, mean), torch.full_like(noise, rate), noise)
    exact = ndtr(noise.double().numpy())
    assert np.abs(np.interp(drawn.double().numpy(), u, below / below[-1]) - exact).max() < 1e-5


def observed(width: int) -> Tensor:
    """Three groups: one that did not move, one that did a little, one far."""
    generator = torch.Generator().manual_seed(width)
    moved = torch.tensor([0.0, 0.1, 0.6])[:, None] * torch.randn(1, width, generator=generator)
    return moved + SD * torch.randn(3, width, generator=generator)


def grouped(width: int, alpha: float, beta: float) -> Selection:
    data = (torch.zeros(1, 1), observed(width).repeat(COPIES, 1).reshape(1, -1))
    return select(
        FlatNetwork(Rows(3 * COPIES, width)), data, likelihood=observed_weights,
        prior=LaplaceGamma(alpha, beta), groups="row", rule="bayestune",
        data_size=1, warmup_steps=200, num_samples=100, thinning=3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("width", "alpha", "beta"),
    [pytest.param(1, 5.0, 50.0, marks=pytest.mark.thorough), (8, 0.5, 20.0)],
)
def test_posterior_scales_of_conjugate_groups(width: int, alpha: float, beta: float) -> None:
    found = grouped(width, alpha, beta)
    assert found.scale_mean is not None
    assert found.mcse is not None
    scales = found.scale_mean.double().reshape(COPIES, 3, width)
    assert (scales == scales[..., :1]).all()  # one a row
    each = scales[..., 0]
    mean, error = each.mean(0).numpy(), each.std(0).numpy() / math.sqrt(COPIES)
    data = observed(width).double().numpy()
    exact = np.array([laplace_gamma_group(row, SD, alpha, beta).scale_mean for row in data])
    assert (np.abs(mean - exact) < 4.5 * error).all()
    assert (error < 0.04 * exact).all()
    # The errors stated are those found among groups that differ in nothing.
    stated = found.mcse.double().reshape(COPIES, 3, width)[..., 0].square().mean(0).sqrt().numpy()
    assert np.abs(np.log(stated / each.std(0).numpy())).max() < math.log(1.6)


def test_a_layer_that_must_move_is_selected_whole() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.still, self.moving = nn.Parameter(torch.zeros(30)), nn.Parameter(torch.zeros(30))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.still, self.moving]).expand(len(x), -1)

    generator = torch.Generator().manual_seed(6)
    moved = torch.cat([torch.zeros(30), torch.randn(30, generator=generator)])
    data = (torch.zeros(1, 1), (moved + SD * torch.randn(60, generator=generator))[None])
    found = select(  # under the paper's own prior
        FlatNetwork(Two()), data, likelihood=observed_weights, groups="layer", threshold=0.1,
        rule="bayestune", warmup_steps=300,
    )  # fmt: skip
    assert found.by_layer()["share"].to_dict() == {"still": 0.0, "moving": 1.0}
    exact = laplace_gamma_group(data[1][0, 30:].double().numpy(), SD, 0.01, 100.0)
    assert found.ranked[0].item() == pytest.approx(exact.scale_mean, rel=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": "column"}, "groups must be 'layer' or 'row'"),
        ({"scales": "expected"}, "with scales='drawn'"),
        ({"count_top": True}, "without count_top"),
        ({"prior": horseshoe}, "leave them out"),
    ],
)
def test_what_has_no_groups(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"groups": "row", "rule": "bayestune", **options}
    with pytest.raises(ValueError, match=message):
        select(network(), (X, LABELS), **given)
