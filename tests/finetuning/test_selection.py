"""`select_parameters` against closed forms, against itself, and on weights known to have moved."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_selection import COPIES, PRIOR, SCALES, means, observed_weights, select
from small_tuning import HEAD, LABELS, X, network
from torch import nn

from ppl_fe.data import TensorData
from ppl_fe.demo.digits import embedded_digits
from ppl_fe.demo.pretraining import digits_network
from ppl_fe.finetuning.objective import Objective
from ppl_fe.finetuning.scale_chains import ScaleChains
from ppl_fe.finetuning.scale_plan import Plan
from ppl_fe.finetuning.scale_runs import run_chains
from ppl_fe.finetuning.selected import Selection
from ppl_fe.networks.flat import FlatNetwork


@pytest.mark.parametrize("method", ["bayestune", "collapsed"])
@pytest.mark.parametrize("diagnose", [True, False])
def test_posterior_scales_of_a_conjugate_network(method: str, diagnose: bool) -> None:
    net, data = means()
    found = select(
        net,
        data,
        likelihood=observed_weights,
        method=method,
        prior=PRIOR,
        num_samples=60,
        thinning=3,
        diagnose=diagnose,
    )
    assert found.scale_mean is not None
    each = found.scale_mean.double().reshape(COPIES, 5)
    mean, error = each.mean(0).numpy(), each.std(0).numpy() / math.sqrt(COPIES)
    assert np.abs(mean / SCALES - 1).max() < 0.03
    assert (np.abs(mean - SCALES) < 4.5 * error + 1e-3 * np.array(SCALES)).all()
    assert (error < 0.02 * np.array(SCALES)).all()
    if diagnose:
        assert found.mcse is not None
        assert found.r_hat is not None
        # The errors stated are those found among weights that differ in nothing.
        stated = found.mcse.double().reshape(COPIES, 5).square().mean(0).sqrt().numpy()
        assert np.abs(np.log(stated / each.std(0).numpy())).max() < math.log(1.5)
        assert found.r_hat.median() < 1.05


def test_the_spread_of_a_scale_is_that_of_its_draws() -> None:
    net, data = means()
    drawn, expected = (
        select(net, data, likelihood=observed_weights, method=m, prior=PRIOR, num_samples=60)
        for m in ("bayestune", "collapsed")
    )
    lean = select(
        net, data, likelihood=observed_weights, prior=PRIOR, num_samples=60, diagnose=False
    )
    assert drawn.scale_sd is not None
    first = drawn.scale_sd.double().square().reshape(COPIES, 5)
    for other in (expected.scale_sd, lean.scale_sd):
        assert other is not None
        second = other.double().square().reshape(COPIES, 5)
        error = ((first.var(0) + second.var(0)) / COPIES).sqrt()
        assert ((first.mean(0) - second.mean(0)).abs() < 4.5 * error).all()
        assert (error < 0.1 * first.mean(0)).all()


def digits() -> tuple[FlatNetwork, tuple[torch.Tensor, torch.Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = FlatNetwork(digits_network(width=8))
    return net, embedded_digits().training


def test_both_forms_agree_on_a_small_real_network() -> None:
    # The data count for 20,000 rows, so that some weights stand out of the others.
    net, data = digits()
    joint, collapsed = (
        select(
            net, data, method=m, sparsity=0.05, batch_size=400, data_size=2e4, warmup_steps=150,
            num_samples=60, thinning=3, seed=1,
        )
        for m in ("bayestune", "collapsed")
    )  # fmt: skip
    assert joint.scale_mean is not None
    assert collapsed.scale_mean is not None
    # Equal seeds give the same offsets: λ drawn at them differs from λ expected there by chance
    # alone, independent from draw to draw and of no more than the stated spread.
    assert joint.scale_sd is not None
    for where in [slice(0, None), *(w for w in net.slices.values() if w.stop - w.start > 30)]:
        difference = joint.scale_mean[where] - collapsed.scale_mean[where]
        error = joint.scale_sd[where].square().sum().div(2 * 60).sqrt() / len(difference)
        assert difference.mean().abs() < 4.5 * error
        assert error < 0.2 * collapsed.scale_mean[where].mean()
    assert (joint.mask & collapsed.mask).sum() >= 0.8 * joint.num_selected


def test_weights_that_must_move_are_found() -> None:
    # 2000 weights, 10 of which moved, 300 rows: the squared gradient sees the small ones in noise.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2000, generator=generator)
    moved = torch.zeros(2000)
    places = torch.randperm(2000, generator=generator)[:10]
    moved[places] = torch.linspace(0.4, 1.2, 10)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = FlatNetwork(nn.Linear(2000, 1, bias=False))
    y = net(net.anchor, x)[:, 0] + x @ moved + torch.randn(300, generator=generator)
    found = {
        method: select(
            net, (x, y), likelihood="normal", method=method, sparsity=0.005, batch_size=300,
            warmup_steps=400, num_samples=20, thinning=5, count_top=method == "collapsed",
        )
        for method in ("collapsed", "gradient_squared", "magnitude")
    }  # fmt: skip
    hits = {method: int((moved[s.mask] != 0).sum()) for method, s in found.items()}
    assert hits["collapsed"] == 10
    assert hits["gradient_squared"] < 10
    assert hits["magnitude"] < 3
    # Sparsity by the knee and by a threshold, from the same scores.
    assert 10 <= found["collapsed"].knees[0] <= 14
    often = found["collapsed"].probability_in_top
    assert often is not None
    assert often.sum().item() == pytest.approx(10)
    # Below half a weight the spike is another mode, in which one chain of two stays at some seeds.
    assert (often[places] >= 0.5).all()
    assert (often[moved > 0.5] > 0.8).all()


def test_the_number_by_a_threshold_or_by_the_knee() -> None:
    net = FlatNetwork(nn.Linear(4, 200))
    with torch.no_grad():
        net.anchor[:] = 1e-3 * torch.linspace(1, 1.1, 1000)
        net.anchor[100:140] = 1.0
    data = (X, LABELS)
    above = select(net, data, method="magnitude", threshold=0.5)
    assert torch.equal(above.mask, net.anchor > 0.5)
    assert torch.equal(select(net, data, method="magnitude", sparsity="knee").mask, above.mask)


def test_the_head_is_not_ranked_and_equal_seeds_are_equal() -> None:
    net = network()
    first = select(net, (X, LABELS), head=HEAD, batch_size=20, seed=4)
    torch.manual_seed(9)
    again = select(net, (X, LABELS), head=HEAD, batch_size=20, seed=4)
    other = select(net, (X, LABELS), head=HEAD, batch_size=20, seed=5)
    inside = torch.zeros(net.num_parameters, dtype=torch.bool)
    for name in first.head:
        inside[net.slices[name]] = True
    assert torch.equal(first.score.isnan(), inside)
    assert not (first.mask & inside).any()
    assert first.num_selected == round(0.1 * int((~inside).sum()))
    assert torch.equal(first.score.nan_to_num(), again.score.nan_to_num())
    assert not torch.equal(first.score.nan_to_num(), other.score.nan_to_num())
    assert torch.equal(net.anchor, network().anchor)


def test_batches_of_32_by_default_and_all_the_data_for_none() -> None:
    def used(**options: int | None) -> object:
        found = select(network(), (X, LABELS), method="gradient_squared", **options)
        return found.settings["batch_size"]

    assert (used(), used(batch_size=None), used(batch_size=10**6)) == (32, len(X), len(X))


def test_the_head_follows_its_own_posterior() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(500))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.body, self.head]).expand(len(x), -1)

    net = FlatNetwork(Two())
    target = torch.full((1, 504), 2.0)
    source = TensorData(torch.zeros(1, 1), target, 1)
    plan = Plan("expected", 1, 1, 0, 1, 0.05, 1.0, 1, 0, False)
    chains = ScaleChains(
        net, Objective("normal", net.device), source, 5.0, 50.0, plan, [net.slices["head"]]
    )
    run_chains(chains, progress_bar=False)
    draws = []
    for k in range(1500):
        chains.step()
        if k > 200 and k % 20 == 0:
            draws.append(chains.offset[net.slices["head"]].clone())
    values = torch.stack(draws).double()  # prior N(0, 1), one observation 2 of sd 1: N(1, 1/2)
    error = values.mean(0).std().item() / math.sqrt(500)
    assert abs(values.mean().item() - 1) < 4.5 * error < 0.05
    squares = (values - 1).square().mean(0)
    excess = 1 / (1 - 0.05 * 2 / 4)  # of SGLD at this step
    assert abs(squares.mean().item() - 0.5 * excess) < 4.5 * squares.std().item() / math.sqrt(500)


def test_a_selection_says_what_it_is() -> None:
    net = network()
    found = select(net, (X, LABELS), head=HEAD, method="magnitude")
    table = found.by_layer()
    assert table["selected"].sum() == found.num_selected
    assert list(table.index) == ["0.weight", "0.bias"]
    assert (table["share"] == table["selected"] / table["size"]).all()
    assert repr(found).startswith("Selection(method='magnitude', 2 of 25 parameters, 8 %")
    assert "<table" in found._repr_html_()
    assert isinstance(found, Selection)
    axes = found.plot()
    assert axes[0].get_xscale() == axes[0].get_yscale() == "log"
    assert len(axes[1].patches) == 2


def test_autocast_and_double_precision_run() -> None:
    net = FlatNetwork(network().module.double())
    assert select(net, (X.double(), LABELS)).score.dtype == torch.float64
    low = FlatNetwork(network().module, autocast=torch.bfloat16)
    assert select(low, (X, LABELS)).score.isfinite().all()
