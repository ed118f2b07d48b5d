"""What stage 1 measures on its way: moments of scales, and how stiff a likelihood is."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppl_fe.data import TensorData
from ppl_fe.finetuning.mixing import mixing_notes
from ppl_fe.finetuning.objective import Objective, shuffled
from ppl_fe.finetuning.scale_chains import ScaleChains
from ppl_fe.finetuning.scale_moments import ScaleMoments
from ppl_fe.finetuning.scale_plan import Plan
from ppl_fe.finetuning.stage_one import Scores
from ppl_fe.finetuning.stiffness import Stiffness, measure
from ppl_fe.finetuning.working_copy import NotFiniteGradientError, WorkingCopy
from ppl_fe.inference.moments import RunningMoments
from ppl_fe.networks.flat import FlatNetwork


def correlated(chains: int, samples: int) -> Tensor:
    """(C, S, 5) autoregressive draws, of chains that differ a little."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(chains, samples, 5, generator=generator, dtype=torch.float64)
    draws = [noise[:, 0]]
    for k in range(1, samples):
        draws.append(0.7 * draws[-1] + noise[:, k])
    return torch.stack(draws, 1) + 0.3 * torch.arange(chains)[:, None, None] + 5


@pytest.mark.parametrize(("chains", "samples"), [(2, 100), (3, 64), (1, 40)])
def test_moments_are_those_of_chains_side_by_side(chains: int, samples: int) -> None:
    draws = correlated(chains, samples)
    beside = RunningMoments(chains, 5, samples, dtype=torch.float64, device="cpu")
    after = ScaleMoments(5, chains, samples, draws, errors=True)
    for k in range(samples):
        beside.add(draws[:, k])
    for chain in draws:
        for draw in chain:
            after.add(slice(0, 3), draw[:3])
            after.add(slice(3, 5), draw[3:])
            after.next()
    mean, sd, r_hat, mcse = after.summary()
    expected = beside.summary()
    assert r_hat is not None
    assert mcse is not None
    torch.testing.assert_close(mean, expected.mean)
    torch.testing.assert_close(sd, expected.sd)
    torch.testing.assert_close(r_hat, expected.r_hat)
    torch.testing.assert_close(mcse, expected.mcse)


@pytest.mark.parametrize("errors", [True, False])
@pytest.mark.parametrize("samples", [7, 20])
def test_extra_variance_widens_the_spread_alone(errors: bool, samples: int) -> None:
    draws = correlated(2, samples)
    plain, wide = (ScaleMoments(5, 2, samples, draws, errors=errors) for _ in range(2))
    for draw in draws.reshape(-1, 5):
        plain.add(slice(0, 5), draw)
        wide.add(slice(0, 5), draw, torch.full((5,), 4.0, dtype=torch.float64))
        plain.next()
        wide.next()
    first, second = plain.summary(), wide.summary()
    flat = draws.reshape(-1, 5)
    torch.testing.assert_close(first[0], flat.mean(0))
    torch.testing.assert_close(first[1], flat.std(0))
    torch.testing.assert_close(second[0], first[0])
    share = 1.0 if errors else len(flat) / (len(flat) - 1)
    torch.testing.assert_close(second[1].square(), first[1].square() + 4 * share)
    if errors:
        torch.testing.assert_close(second[3], first[3])


def test_means_of_an_unfinished_run() -> None:
    draws = correlated(2, 100).reshape(-1, 5)
    for count in (3, 37, 50, 51, 130, 199):
        moments = ScaleMoments(5, 2, 100, draws, errors=True)
        for draw in draws[:count]:
            moments.add(slice(0, 5), draw)
            moments.next()
        torch.testing.assert_close(moments.so_far(), draws[:count].mean(0))
        with pytest.raises(ValueError, match="draws are in"):
            moments.summary()


STEPS = "500 \\+ 100 x 10 steps, or num_chains above 2"


@pytest.mark.parametrize(
    ("num_bad", "settings", "batch_size", "said"),
    [
        (0, {}, 32, None),
        # One in a hundred of those above the median, by chance; half of those selected is none.
        (
            5,
            {},
            32,
            f"the scales exceeds 1.1 in 50 % of those selected, up to 2.20: raise .* {STEPS}",
        ),
        (50, {}, 32, "in 10 % of those above the median and 100 % of those selected, up to 2.20"),
        (
            50,
            {"prior": "own"},
            32,
            r"2.20: take all the data in every step \(batch_size=None\), or",
        ),
        (50, {"prior": "own"}, 100, "up to 2.20: raise warmup_steps and num_samples above"),
    ],
)
def test_a_ranking_whose_chains_disagree_says_so(
    num_bad: int, settings: dict[str, str], batch_size: int, said: str | None
) -> None:
    score, r_hat = torch.arange(1010.0).flip(0), torch.ones(1010)
    score[1000:] = torch.nan  # a head
    r_hat[1000:], r_hat[:num_bad] = torch.nan, 2.2
    mask = torch.arange(1010) < 10
    plan = Plan("drawn", 2, 100, 500, 10, "auto", 100.0, batch_size, 0, True)
    found = Scores(score, r_hat=r_hat, settings=settings)
    notes = mixing_notes(found, mask, plan, 100)
    if said is None:
        assert notes == []
    else:
        assert re.search(said, "; ".join(notes))
    assert mixing_notes(found._replace(r_hat=None), mask, plan, 100) == []


def regression(batch_size: int, data_size: float = 400.0) -> tuple[Tensor, Stiffness]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    x = x * torch.tensor([1.0, 1, 1, 2, 3, 10], dtype=torch.float64)
    net = FlatNetwork(nn.Linear(6, 1).double())
    noise = torch.randn(400, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        y = net(net.anchor, x)[:, 0] + noise
    source = TensorData(x, y, 400)
    working = WorkingCopy(net, Objective("normal", net.device))

    def write() -> None:
        working.weights.copy_(net.anchor)

    found = measure(
        working,
        write,
        shuffled(source, batch_size, 0),
        data_size,
        torch.Generator().manual_seed(1),
        exact=batch_size == 400,
    )
    assert torch.equal(working.weights, net.anchor)
    columns = torch.cat([x, torch.ones(400, 1, dtype=torch.float64)], 1)
    return columns.T @ columns * (data_size / 400), found


@pytest.mark.parametrize("data_size", [400.0, 4e6])
def test_stiffness_of_a_regression_on_all_the_data(data_size: float) -> None:
    hessian, found = regression(400, data_size)
    exact = float(torch.linalg.eigvalsh(hessian)[-1])
    assert found.largest == pytest.approx(exact, rel=1e-3)
    along = found.along
    # Without noise to tell weights apart, each has its tensor's mean curvature.
    weight, bias = (hessian.diagonal()[part] for part in (slice(0, 6), slice(6, 7)))
    assert (along[:6] == along[0]).all()
    assert along[0].item() == pytest.approx(weight.mean().item(), rel=0.2)
    assert along[6].item() == pytest.approx(bias.item(), rel=0.8)


def test_stiffness_of_a_regression_on_minibatches() -> None:
    hessian, found = regression(40)
    # Residuals of unit variance: s² is N/B times the curvature, less a tenth without replacement.
    exact = hessian.diagonal() * (1 + 400 / 40 * 0.9)
    ratio = (found.along[:7] / exact).log().numpy()
    assert np.abs(ratio).max() < np.log(4)  # of χ² with seven degrees of freedom
    assert abs(ratio.mean()) < np.log(1.8)
    assert found.largest == pytest.approx(float(exact[5]), rel=0.8)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    net = FlatNetwork(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    working = WorkingCopy(net, Objective("normal", net.device))
    working.weights[0] = float("inf")
    with pytest.raises(NotFiniteGradientError, match=r"loss is .*first in the output of layer '0'"):
        working.differentiate((torch.ones(3, 2), torch.zeros(3)))


@pytest.mark.parametrize(("alpha", "beta"), [(0.01, 100.0), (5.0, 0.05)])
def test_chains_start_overdispersed_but_no_wider_than_the_prior(alpha: float, beta: float) -> None:
    """A step of 0.5, as flat data allow, would start every weight of a network half a unit away."""
    net = FlatNetwork(nn.Linear(4000, 1, bias=False))
    source = TensorData(torch.zeros(1, 4000), torch.zeros(1), 1)
    plan = Plan("expected", 1, 1, 0, 1, 0.5, 1.0, 1, 0, False)
    chains = ScaleChains(net, Objective("normal", net.device), source, alpha, beta, plan, [])
    chains.start(0)
    prior = (2 * alpha * (alpha + 1)) ** 0.5 / beta
    found = chains.offset[:4000].std().item()
    assert found == pytest.approx(2 * min(0.25**0.5, prior), rel=0.05)
