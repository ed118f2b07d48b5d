"""`select_parameters` against closed forms, against itself, and on weights known to have moved."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from cases.selection import COPIES, OBSERVED, PRIOR, SCALES, SD, means, observed_weights, select
from cases.tuning import HEAD, LABELS, X, network
from ppl_fe.models import LaplaceGamma, horseshoe, student_t
from ppl_fe.models.priors import PRIOR_EXAMPLE
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ppl_fe.data import TensorData
from ppl_fe.demo.digits import embedded_digits
from ppl_fe.demo.pretraining import digits_network
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.bayestune.at_scale.stiffness import Stiffness, measure
from ppl_fe.finetuning.bayestune.restarts import run_chains
from ppl_fe.finetuning.bayestune.scale_chains import ScaleChains
from ppl_fe.finetuning.bayestune.scale_moments import ScaleMoments
from ppl_fe.finetuning.custom_prior import variational_starts
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import Objective, shuffled
from ppl_fe.finetuning.sampling_plan import SamplingPlan
from ppl_fe.finetuning.score_notes import agreement_notes
from ppl_fe.finetuning.scoring import Scores
from ppl_fe.finetuning.selection import Selection
from ppl_fe.finetuning.threshold import find_knees
from ppl_fe.inference.record.running_moments import RunningMoments
from ppl_fe.networks.flat import FlatNetwork


@pytest.mark.parametrize("method", ["bayestune", "collapsed"])
@pytest.mark.parametrize("diagnose", [True, False])
def test_posterior_scales_of_a_conjugate_network(method: str, diagnose: bool) -> None:
    net, data = means()
    found = select(
        net,
        data,
        likelihood=observed_weights,
        rule=method,
        prior=PRIOR,
        data_size=1.0,
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


@pytest.mark.thorough
def test_the_spread_of_a_scale_is_that_of_its_draws() -> None:
    net, data = means()
    drawn, expected = (
        select(
            net,
            data,
            likelihood=observed_weights,
            rule=m,
            prior=PRIOR,
            num_samples=60,
            data_size=1.0,
        )
        for m in ("bayestune", "collapsed")
    )
    lean = select(
        net, data, likelihood=observed_weights, prior=PRIOR, num_samples=60, diagnose=False,
        data_size=1.0,
    )  # fmt: skip
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


@pytest.mark.thorough
def test_both_forms_agree_on_a_small_real_network() -> None:
    # The data count for 20,000 rows, so that some weights stand out of the others.
    net, data = digits()
    joint, collapsed = (
        select(
            net, data, rule=m, sparsity=0.05, batch_size=400, data_size=2e4, warmup_steps=150,
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
            net, (x, y), likelihood="normal", rule=method, sparsity=0.005, batch_size=300,
            warmup_steps=400, num_samples=20, thinning=5, data_size=300.0,
            count_top=method == "collapsed",
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
    above = select(net, data, rule="magnitude", threshold=0.5)
    assert torch.equal(above.mask, net.anchor > 0.5)
    assert torch.equal(select(net, data, rule="magnitude", sparsity="knee").mask, above.mask)


def test_the_head_is_not_ranked_and_equal_seeds_are_equal() -> None:
    net = network()
    quick: dict[str, Any] = {"batch_size": 20, "num_samples": 6, "warmup_steps": 8, "thinning": 1}
    first = select(net, (X, LABELS), head=HEAD, seed=4, **quick)
    torch.manual_seed(9)
    again = select(net, (X, LABELS), head=HEAD, seed=4, **quick)
    other = select(net, (X, LABELS), head=HEAD, seed=5, **quick)
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
        found = select(network(), (X, LABELS), rule="gradient_squared", **options)
        return found.settings["batch_size"]

    assert (used(), used(batch_size=None), used(batch_size=10**6)) == (32, len(X), len(X))


def one_step(step_size: float) -> SamplingPlan:
    """One chain of one step."""
    return SamplingPlan(
        num_samples=1, warmup_steps=0, thinning=1, scale="expected", num_chains=1,
        step_size=step_size, data_size=1.0, batch_size=1, seed=0, errors=False,
    )  # fmt: skip


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
    plan = one_step(0.05)
    chains = ScaleChains(
        net, Objective("normal", net.device), source, 5.0, 50.0, plan, [net.slices["head"]]
    )
    run_chains(chains, progress_bar=False)
    draws = []
    for k in range(1500):
        chains.step()
        if k > 200 and k % 20 == 0:
            draws.append(chains.offsets.values[net.slices["head"]].clone())
    values = torch.stack(draws).double()  # prior N(0, 1), one observation 2 of sd 1: N(1, 1/2)
    error = values.mean(0).std().item() / math.sqrt(500)
    assert abs(values.mean().item() - 1) < 4.5 * error < 0.05
    squares = (values - 1).square().mean(0)
    excess = 1 / (1 - 0.05 * 2 / 4)  # of SGLD at this step
    assert abs(squares.mean().item() - 0.5 * excess) < 4.5 * squares.std().item() / math.sqrt(500)


def test_a_selection_says_what_it_is() -> None:
    net = network()
    found = select(net, (X, LABELS), head=HEAD, rule="magnitude")
    table = found.by_layer()
    assert table["selected"].sum() == found.num_selected
    assert list(table.index) == ["0.weight", "0.bias"]
    assert (table["share"] == table["selected"] / table["size"]).all()
    assert repr(found).startswith("Selection(rule='magnitude', 2 of 25 parameters, 8 %")
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


@pytest.mark.thorough
def test_differences_of_gradients_are_taken_in_full_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bfloat16 weights that far apart are one, and gradients there differ by rounding."""
    # Fine-tuning takes no differences and keeps autocast, so that starts would not be the same.
    monkeypatch.setattr(ScaleChains, "_comes_too_late", False)
    low = FlatNetwork(network().module, autocast=torch.bfloat16)
    settings: dict[str, Any] = {
        "data_size": 1e7,
        "warmup_steps": 8,
        "num_samples": 4,
        "thinning": 1,
    }
    varied = settings | {"gradient": "control_variate", "batch_size": 32}
    full, same = (select(one, (X, LABELS), **varied) for one in (network(), low))
    assert same.settings["step_size"] == pytest.approx(full.settings["step_size"], rel=1e-3)
    torch.testing.assert_close(same.score, full.score, rtol=1e-3, atol=0.0)
    assert any("autocast=torch.bfloat16 is left out" in note for note in same.notes)
    full, same = (select(one, (X, LABELS), **settings) for one in (network(), low))
    assert same.settings["step_size"] == pytest.approx(full.settings["step_size"], rel=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.0}, "sparsity must lie between 0 and 1"),
        ({"sparsity": 1.0}, "sparsity must lie between 0 and 1"),
        ({"sparsity": "all"}, "sparsity must be a number in"),
        ({"sparsity": 0.001}, "selects 0; one parameter is 0.027"),
        ({"sparsity": 0.999}, "selects 37; one parameter is"),
        ({"rule": "magnitude", "threshold": 100.0}, "selects nothing, 0 of 37; scores run from"),
        ({"rule": "magnitude", "threshold": -1.0}, "selects everything, 37 of 37"),
        ({"count_top": True, "sparsity": "knee"}, "count_top needs a number as sparsity"),
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"data_size": 0.0}, "data_size must be a positive number"),
        ({"step_size": -1.0}, "step_size must be 'auto' or a positive number"),
        ({"head": "nowhere"}, "names no parameter"),
        ({"prior": LaplaceGamma(groups=torch.zeros(37, dtype=torch.long))}, "groups='layer' or"),
        ({"prior": LaplaceGamma(alpha=1e9)}, "alpha must lie in"),
        (
            {"prior": horseshoe},
            "scales='expected', groups, count_top and gradient are of the prior",
        ),
        ({"gradient": "exact"}, "gradient must be one of"),
        ({"prior": horseshoe, "rule": "released_code"}, "the released code has the prior Laplace"),
        ({"scales": "mean", "rule": "bayestune"}, "scales must be 'drawn' or 'expected'"),
        (
            {"prior": student_t, "rule": "bayestune", "num_samples": 10**6},
            "only LaplaceGamma goes through large networks",
        ),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(network(), (X, LABELS), **options)


def test_data_of_one_class() -> None:
    with pytest.raises(ValueError, match="one class only, 0"):
        select(network(), (X, torch.zeros_like(LABELS)))


def test_scores_without_a_bend_have_no_knee() -> None:
    with pytest.raises(ValueError, match="have no bend"):
        select(FlatNetwork(nn.Linear(4, 400)), (X, LABELS), rule="random", sparsity="knee")
    assert find_knees(torch.ones(10).numpy()) == []


class Exploding(nn.Module):
    """Finite at the anchor, NaN as soon as its second layer's weight leaves a small ball."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)
        nn.init.zeros_(self.second.weight)
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out * torch.where(self.second.weight.abs().max() > self.bound, torch.nan, 1.0)


def test_a_loss_that_is_not_finite_names_step_and_layer() -> None:
    net = FlatNetwork(Exploding(0.05))
    with pytest.raises(DivergedError, match=r"chain 0, step \d+ of 240, .*loss is nan") as caught:
        select(
            net, (X, LABELS), step_size=1e-2, num_samples=200, warmup_steps=40, thinning=1,
            prior=PRIOR,
        )  # fmt: skip
    before = caught.value.scale_mean
    assert before is None or bool(before.isfinite().all())


def test_the_draws_before_a_failure_are_kept() -> None:
    net, data = means(2)
    calls = 0

    def failing(output: Tensor, targets: Tensor) -> object:
        nonlocal calls
        calls += 1
        return observed_weights(output * (torch.nan if calls > 200 else 1.0), targets)

    with pytest.raises(DivergedError, match=r"chain 0, step \d+ of 1016, .*likelihood") as caught:
        select(net, data, likelihood=failing, num_samples=1000, step_size=0.05, data_size=1.0)
    before = caught.value.scale_mean
    assert before is not None
    assert before.shape == (10,)
    assert bool((before > 0).all())


def test_a_step_that_diverges_says_so() -> None:
    net, data = means(2)
    with pytest.raises(DivergedError, match="lower step_size=10"):
        select(net, data, likelihood=observed_weights, step_size=10.0, num_samples=500)


class Cubic(nn.Module):
    """Flat at its anchor and stiff around it: where the step is measured, it is chosen too long."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(20))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w + 100 * self.w**3).expand(len(x), -1)


def test_a_step_chosen_too_long_is_shortened_and_told() -> None:
    net, data = FlatNetwork(Cubic()), (torch.zeros(10, 1), torch.full((10, 20), 2.0))
    settings: dict[str, Any] = {
        "likelihood": "normal", "batch_size": None, "data_size": 10.0,
        "num_samples": 20, "warmup_steps": 50, "thinning": 2,
    }  # fmt: skip
    found = select(net, data, **settings)
    assert found.scale_mean is not None
    assert bool(found.scale_mean.isfinite().all())
    (note,) = [note for note in found.notes if "times shorter" in note]
    times = int(note.split(" times shorter")[0].split()[-1])
    assert times in (4, 16, 64)
    with pytest.raises(DivergedError, match="lower step_size"):
        select(net, data, **settings, step_size=found.settings["step_size"] * times)


def test_a_loader_brings_its_own_batches() -> None:
    loader = DataLoader(TensorDataset(X, LABELS), batch_size=20)
    assert select(network(), loader, head=HEAD).num_selected == 2
    with pytest.raises(ValueError, match="the loader brings its own"):
        select(network(), loader, batch_size=7)


def no_return(anchor: Tensor) -> None:
    pyro.sample("w", dist.Normal(anchor, 0.1).to_event(1))


def of_two(anchor: Tensor, scale: float) -> Tensor:
    w: Tensor = pyro.sample("w", dist.Normal(anchor, scale).to_event(1))
    return w


def misnamed(anchor: Tensor) -> Tensor:
    w: Tensor = pyro.sample("weights", dist.Normal(anchor, 0.1).to_event(1))
    return w


TYPO: dict[str, Any] = {"scael": 0.1}
WRONG = r"prior must be a function of the anchor alone: "


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (no_return, r"prior must return the site 'w', a tensor of shape \(37,\), got None; "),
        (lambda anchor: of_two(anchor, 1.0).sum(), "must return .*, got a tensor of shape "),
        (of_two, WRONG + "missing a required argument: 'scale'; .*functools.partial.*"),
        (lambda: of_two(torch.zeros(37), 1.0), WRONG + "too many positional arguments; .*"),
        (partial(student_t, **TYPO), WRONG + ".*'?scael'?=0.1.* has incorrect arguments.*"),
        ("horseshoe", "prior must be a function of the anchor, got a str; "),
        (dist.Normal(torch.zeros(37), 1.0), "a function of the anchor, got a Normal; "),
        (misnamed, r"prior must sample the site 'w' .*, its sites are \['weights'\]; "),
    ],
)
def test_a_prior_that_is_none_is_shown_one(prior: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{message}.*for example") as raised:
        select(network(), (X, LABELS), prior=prior, rule="bayestune")
    assert str(raised.value).endswith(PRIOR_EXAMPLE)


def test_the_prior_shown_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variational_starts, "STEPS", 100)
    space: dict[str, Any] = {"pyro": pyro, "dist": dist}
    exec(PRIOR_EXAMPLE.strip("`"), space)
    own = {"prior": space["prior"], "rule": "bayestune", "step_size": 1e-3, "batch_size": 8}
    found = select(network(), (X, LABELS), **own)
    assert found.score.isfinite().all()
    # 16 + 10 steps on minibatches are far too few, and it says so.
    assert re.search(r"^R-hat of \|w - anchor\| exceeds .*batch_size=None", found.notes[1])


def test_another_prior_goes_through_the_engine() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.head, self.body]).expand(len(x), -1)

    data = (torch.zeros(1, 1), torch.cat([torch.ones(2), OBSERVED])[None])
    found = select(
        FlatNetwork(Two()), data, likelihood=observed_weights, head="head", rule="bayestune",
        prior=partial(student_t, scale=0.1), warmup_steps=500, num_samples=250, thinning=5,
        num_chains=16, sparsity=0.2,
    )  # fmt: skip
    assert found.notes == ("scores are posterior means of |w - anchor|",)
    assert repr(found).startswith("Selection(prior='student_t' by BAOAB, 1 of 5 parameters, 20 %)")
    assert found.plot()[0].get_ylabel() == "posterior mean of |w - anchor|"
    assert found.scale_mean is None
    assert found.mcse is not None
    assert found.score[:2].isnan().all()
    w = np.linspace(-2, 3, 20_001)
    for score, mcse, y in zip(found.score[2:], found.mcse[2:], OBSERVED.tolist(), strict=True):
        density = scipy.stats.t.pdf(w / 0.1, 4) * scipy.stats.norm.pdf(y, w, SD)
        exact = float((density * np.abs(w)).sum() / density.sum())
        # 5 % of an excess temperature is what the engine's step size allows.
        assert abs(score.item() - exact) < 4.5 * mcse.item() + 0.025 * exact
        assert mcse < 0.05 * exact


@pytest.mark.parametrize("prior", [LaplaceGamma(), partial(student_t, scale=0.1)])
def test_a_likelihood_without_an_observed_site_is_refused(prior: Any) -> None:
    def returned(output: Tensor, targets: Tensor) -> object:
        return dist.Normal(output[:, 0], 1.0).log_prob(targets)

    with pytest.raises(ValueError, match=r"no observed site \(pyro.sample\(\.\.\., obs=targets"):
        select(network(), (X, LABELS), rule="bayestune", likelihood=returned, prior=prior)


def test_a_bare_module_is_refused() -> None:
    module: Any = network().module
    with pytest.raises(TypeError, match=r"got Sequential; wrap the module: fe.FlatNetwork\(module"):
        select(module, (X, LABELS))


NUM_WEIGHTS, NUM_MOVED, NUM_ROWS = 10_000, 50, 1_000


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bayestune", "collapsed"])
def test_fifty_of_ten_thousand(method: str) -> None:
    """Linear regression on a thousand rows; fifty coefficients moved by 0.2 to 0.6, noise 1.

    Given the places a coefficient has a standard error of 1/√1000 = 0.032, so that the smallest is
    six of them away from the anchor. At p = 0.5 % this problem gave, found of 50: collapsed 50,
    bayestune 50 (400 + 50 · 6 steps, two chains), movement 34 (500 steps of AdamW at 1e-3, batch
    32), gradient_squared 12 (batch 32), magnitude 0, random 0, paper 0 (its steps scaled down to
    400 + 50 · 6, learning rate 1e-3, batch 32: far fewer than its own 20,000).
    """
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(NUM_WEIGHTS, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(1, NUM_WEIGHTS, generator=generator) / NUM_WEIGHTS**0.5)
    x = torch.randn(NUM_ROWS, NUM_WEIGHTS, generator=generator)
    moved = torch.zeros(NUM_WEIGHTS)
    places = torch.randperm(NUM_WEIGHTS, generator=generator)[:NUM_MOVED]
    signs = 2 * torch.randint(2, (NUM_MOVED,), generator=generator) - 1
    moved[places] = torch.linspace(0.2, 0.6, NUM_MOVED) * signs
    with torch.no_grad():
        y = linear(x)[:, 0] + x @ moved + torch.randn(NUM_ROWS, generator=generator)
    network = FlatNetwork(linear)
    hits = {}
    for rule in (method, "gradient_squared"):
        found = select(
            network, (x, y), likelihood="normal", sparsity=NUM_MOVED / NUM_WEIGHTS, rule=rule,
            batch_size=NUM_ROWS if rule == method else 32, warmup_steps=400, num_samples=50,
            thinning=6, data_size=float(NUM_ROWS),
        )  # fmt: skip
        hits[rule] = int((moved[found.mask] != 0).sum())
    assert hits[method] >= 47
    assert hits["gradient_squared"] < 25


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


def test_lengths_and_batches_are_named_where_chains_disagree() -> None:
    plan = replace(one_step(0.05), num_samples=100, warmup_steps=500, thinning=10, num_chains=2)
    assert plan.remedy == (
        "raise warmup_steps and num_samples above 500 + 100 x 10 steps, or num_chains above 2"
    )


@pytest.mark.parametrize(
    ("num_bad", "said"),
    [
        (0, None),
        # One in a hundred of those above the median, by chance; half of those selected is none.
        (5, "the scales exceeds 1.1 in 50 % of those selected, up to 2.20: run longer"),
        (50, "in 10 % of those above the median and 100 % of those selected, up to 2.20: run"),
    ],
)
def test_a_ranking_whose_chains_disagree_says_so(num_bad: int, said: str | None) -> None:
    score, r_hat = torch.arange(1010.0).flip(0), torch.ones(1010)
    score[1000:] = torch.nan  # a head
    r_hat[1000:], r_hat[:num_bad] = torch.nan, 2.2
    mask = torch.arange(1010) < 10
    found = Scores(score, r_hat=r_hat, remedy="run longer")
    notes = agreement_notes(found, mask)
    if said is None:
        assert notes == []
    else:
        assert re.search(said, "; ".join(notes))
    assert agreement_notes(found._replace(r_hat=None), mask) == []


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

    batches = shuffled(source, batch_size, 0)
    found = measure(
        working,
        working.differentiate,
        write,
        batches,
        None if batch_size == 400 else batches,
        data_size,
        torch.Generator().manual_seed(1),
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
    with pytest.raises(DivergedError, match=r"loss is .*first in the output of layer '0'"):
        working.differentiate((torch.ones(3, 2), torch.zeros(3)))


@pytest.mark.parametrize(("alpha", "beta"), [(0.01, 100.0), (5.0, 0.05)])
def test_chains_start_overdispersed_but_no_wider_than_the_prior(alpha: float, beta: float) -> None:
    """A step of 0.5, as flat data allow, would start every weight of a network half a unit away."""
    net = FlatNetwork(nn.Linear(4000, 1, bias=False))
    source = TensorData(torch.zeros(1, 4000), torch.zeros(1), 1)
    plan = one_step(0.5)
    chains = ScaleChains(net, Objective("normal", net.device), source, alpha, beta, plan, [])
    chains.start(0)
    prior = (2 * alpha * (alpha + 1)) ** 0.5 / beta
    found = chains.offsets.values[:4000].std().item()
    assert found == pytest.approx(2 * min(0.25**0.5, prior), rel=0.05)


def test_a_selection_names_its_tensors() -> None:
    found = select(network(), (X, LABELS), "magnitude")
    assert found.names == tuple(network().names)
