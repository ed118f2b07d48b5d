"""The rules against what they say they are, a rule of one's own, and the arguments of old."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from cases.selection import means, observed_weights, select
from cases.tuning import HEAD, LABELS, N, X, network
from ppl_fe.models import LaplaceGamma, horseshoe, laplace_gamma
from torch import nn
from tqdm import tqdm

import ppl_fe as fe
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning import Scores, Task
from ppl_fe.finetuning.bayestune import restarts
from ppl_fe.finetuning.bayestune.scale_chains import ScaleChains, Tuning
from ppl_fe.finetuning.rules.bayes_tune import _step_notes
from ppl_fe.finetuning.rules.shorthands import RULES, find_rule
from ppl_fe.finetuning.threshold import find_knees, largest
from ppl_fe.finetuning.train.training import finetune
from ppl_fe.networks.flat import FlatNetwork


@pytest.mark.parametrize("batch_size", [1, 7, N])
def test_gradient_squared_by_hand(batch_size: int) -> None:
    net = network()
    found = select(net, (X, LABELS), rule="gradient_squared", batch_size=batch_size)

    def loss(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(net(w, x), y)

    grad = torch.func.grad(loss)
    if batch_size == 1:
        rows = [grad(net.anchor, X[i : i + 1], LABELS[i : i + 1]) for i in range(N)]
        torch.testing.assert_close(found.score, torch.stack(rows).square().sum(0))
    if batch_size == N:
        torch.testing.assert_close(found.score, grad(net.anchor, X, LABELS).square())
    best = found.score.topk(found.num_selected).indices
    assert found.mask[best].all()


@pytest.mark.parametrize("batch_size", [7, N])
def test_gradient_is_that_of_all_the_data(batch_size: int) -> None:
    net = network()
    found = select(net, (X, LABELS), rule="gradient", batch_size=batch_size)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(net(w, X), LABELS)

    torch.testing.assert_close(found.score, torch.func.grad(loss)(net.anchor).abs())


def test_every_neuron_gives_its_largest_gradients() -> None:
    net = network()
    found = select(net, (X, LABELS), rule="per_neuron", head=HEAD, sparsity=0.4)  # 10 of 25
    size = select(net, (X, LABELS), rule="gradient", head=HEAD).score
    best = size[:20].view(5, 4).argsort(descending=True)
    for neuron, chosen in enumerate(found.mask[:20].view(5, 4)):
        count = int(chosen.sum())
        assert count in (1, 2)
        assert set(chosen.nonzero()[:, 0].tolist()) == set(best[neuron, :count].tolist())
    assert int(found.mask[20:25].sum()) in (1, 2)


def test_tensors_share_by_entropy_what_is_largest_for_its_weight() -> None:
    class Three(nn.Module):
        """Linear in its weights, so that gradients are in proportion to the inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.even = nn.Parameter(torch.full((4,), 0.5))
            self.odd = nn.Parameter(torch.tensor([1.0, 1.0, 1e-9, 1e-9]))
            self.one = nn.Parameter(torch.tensor([2.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ torch.cat([self.even, self.odd, self.one])

    slope = torch.tensor([[1.0, 4.0, 3.0, 2.0, 5.0, 6.0, 0.0, 1e-12, 9.0]])
    found = fe.select_parameters(
        FlatNetwork(Three()), (slope, torch.zeros(1)), likelihood="normal",
        rule="gradient_to_weight", sparsity=1 / 3,
    )  # fmt: skip
    # Entropies log 4, log 2 and 0: of three weights two are of the first tensor, one of the second.
    expected = [-3.5, -0.5, -1.5, -2.5, -1.5, -0.5, -3.5, -2.5]
    expected = [e / math.log(4 if k < 4 else 2) for k, e in enumerate(expected)]
    assert found.score[:8].tolist() == pytest.approx(expected, rel=1e-5)
    assert found.score[8] < -1e30
    assert found.mask.nonzero()[:, 0].tolist() == [1, 2, 5]


def test_low_rank_is_the_best_approximation() -> None:
    net = network()
    found = fe.select_parameters(net, (X, LABELS), rule=fe.LowRank(rank=2), sparsity=0.1)
    for name, part in net.unflatten(net.anchor).items():
        score = found.score[net.slices[name]].view(part.shape)
        if part.dim() < 2:
            assert not score.any()
            continue
        left, values, right = torch.linalg.svd(part)
        expected = left[:, :2] @ torch.diag(values[:2]) @ right[:2]
        torch.testing.assert_close(score, expected.abs())
    whole = fe.select_parameters(net, (X, LABELS), rule="low_rank", sparsity=0.1)
    assert torch.equal(whole.score[:20], net.anchor[:20].abs())
    with pytest.raises(ValueError, match="rank must be an integer of at least 1, got 0"):
        fe.LowRank(rank=0)


def test_movement_is_that_of_full_fine_tuning() -> None:
    net = network()
    found = select(
        net, (X, LABELS), rule="movement", num_steps=30, learning_rate=0.01, batch_size=10, seed=2
    )
    tuned = finetune(
        net, (X, LABELS), method="full", num_steps=30, learning_rate=0.01, batch_size=10, seed=2,
        progress_bar=False,
    )  # fmt: skip
    assert torch.equal(found.score, (tuned.weights - net.anchor).abs())


def test_magnitude_random_and_biases() -> None:
    net = network()
    found = select(net, (X, LABELS), rule="magnitude")
    assert found.score[found.mask].min() > found.score[~found.mask].max()
    first, second, again = (
        select(net, (X, LABELS), rule="random", seed=seed).mask for seed in (0, 1, 0)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    biases = select(net, (X, LABELS), rule="bias_only", head=HEAD)
    assert biases.mask.nonzero()[:, 0].tolist() == list(range(20, 25))
    assert biases.notes == ("every bias is selected, 5; sparsity plays no part",)
    with pytest.raises(ValueError, match="that may be chosen is called bias"):
        select(FlatNetwork(nn.Linear(4, 2, bias=False)), (X, LABELS), rule="bias_only")


def test_a_gradient_that_is_not_finite() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w.sqrt().expand(len(x), 2)

    for rule in ("gradient", "gradient_squared"):
        with pytest.raises(DivergedError, match=f"{rule}: the gradient is not finite in w"):
            select(FlatNetwork(Root()), (X, LABELS), rule=rule, sparsity=0.5)


def test_exactly_as_many_as_asked_for_in_the_order_of_the_index() -> None:
    score = torch.tensor([2.0, 1.0, 1.0, 3.0, 1.0, 0.0])
    for count, expected in ((1, [3]), (2, [0, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])):
        assert largest(score, count).nonzero()[:, 0].tolist() == expected
    assert largest(torch.zeros(5), 2).tolist() == [True, True, False, False, False]


def test_knees_lie_where_the_curve_bends() -> None:
    ranks = torch.arange(1, 10_001, dtype=torch.float64)
    floor = (100 / ranks).clamp_min(0.2).numpy()  # falls as 1/rank down to rank 500
    assert find_knees(floor)[0] == pytest.approx(500, rel=0.05)
    two = torch.where(ranks <= 50, 1.0, torch.where(ranks <= 3000, 1e-2, 1e-3)).numpy()
    assert find_knees(two)[0] == 50
    assert 3000 in find_knees(torch.where(ranks <= 3000, 1.0, 1e-3).numpy())
    straight = (1 / ranks).numpy()
    assert find_knees(straight) == []


@dataclass(frozen=True)
class Nearest(fe.Rule):
    """Those whose pretrained value is nearest to a given one."""

    value: float = 0.0

    name = "nearest"
    default_batch_size = None

    def score(self, task: Task) -> Scores:
        assert task.batch_size == N
        near = -(task.network.anchor - self.value).abs()
        return Scores(near, settings=vars(self), notes=("a rule of one's own",))


def test_a_rule_of_one_s_own_needs_nothing_elsewhere() -> None:
    net = network()
    found = fe.select_parameters(
        net, (X, LABELS), rule=Nearest(0.3), head=HEAD, sparsity=0.04, progress_bar=False
    )
    ranked = net.anchor[:25]
    assert found.mask.nonzero().item() == (ranked - 0.3).abs().argmin().item()
    assert found.score[25:].isnan().all()
    assert (found.rule, found.settings["value"]) == ("nearest", 0.3)
    assert found.notes == ("a rule of one's own",)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_shows_its_settings_and_has_a_name(name: str) -> None:
    rule = find_rule(name)
    assert rule.name == name
    assert repr(rule).startswith(f"{type(rule).__name__}(")
    assert getattr(fe, type(rule).__name__) is type(rule)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda **given: fe.BayesTune(**given),
            r"^BayesTune\(\) has no argument 'num_sample'; d",
        ),
        (lambda **given: fe.Movement(**given), r"^Movement\(\) has no argument 'num_sample'; "),
        (
            lambda **given: fe.select_parameters(network(), (X, LABELS), **given),
            r"^select_parameters\(\) has no argument 'num_sample'; ",
        ),
    ],
)
def test_a_misspelt_setting_names_what_was_called(call: Callable[..., Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        call(num_sample=3)


def test_what_is_no_rule_is_refused() -> None:
    wrong: Any
    for wrong, error in (("best", ValueError), (fe.Movement, TypeError), (None, TypeError)):
        with pytest.raises(error, match="rule must be one of"):
            fe.select_parameters(network(), (X, LABELS), rule=wrong)
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1"):
        fe.Movement(num_steps=0)
    with pytest.raises(ValueError, match="learning_rate must be a positive number"):
        fe.ReleasedCode(learning_rate=-1.0)


def of_old(**former: Any) -> fe.Selection:
    """A call as it was written before rules were objects."""
    call: Any = fe.select_parameters
    with pytest.warns(DeprecationWarning, match="goes with the next release"):
        found: fe.Selection = call(
            network(), (X, LABELS), sparsity=0.1, progress_bar=False, **former
        )
    return found


def test_the_arguments_of_old_mean_what_they_meant() -> None:
    quick: dict[str, Any] = {"num_samples": 4, "warmup_steps": 6, "thinning": 1}
    pairs: list[tuple[dict[str, Any], fe.Rule]] = [
        ({**quick}, fe.BayesTune(**quick)),
        ({**quick, "method": "collapsed"}, fe.BayesTune(scales="expected", **quick)),
        ({**quick, "method": "paper", "data_size": None}, fe.ReleasedCode(**quick)),
        (
            {**quick, "groups": "row", "num_chains": 1},
            fe.BayesTune(groups="row", num_chains=1, **quick),
        ),
        ({"method": "movement", "num_steps": 5, "num_samples": 9}, fe.Movement(num_steps=5)),
        ({"rule": "movement", "num_steps": 5}, fe.Movement(num_steps=5)),
    ]
    for former, rule in pairs:
        found = of_old(**former)
        now = fe.select_parameters(
            network(), (X, LABELS), rule=rule, sparsity=0.1, progress_bar=False
        )
        assert torch.equal(found.mask, now.mask)
        assert torch.equal(found.score.nan_to_num(), now.score.nan_to_num())
        assert found.settings == now.settings


def test_what_the_arguments_of_old_refused() -> None:
    call: Any = fe.select_parameters
    net, data = network(), (X, LABELS)
    with pytest.raises(TypeError, match=r"num_steps= beside it; give settings to the rule"):
        call(net, data, rule=fe.Movement(), num_steps=3)
    with pytest.raises(ValueError, match=r"method must be one of .*'paper'"):
        call(net, data, method="best")
    with pytest.raises(ValueError, match="count_top is of the method"):
        call(net, data, method="random", count_top=True)
    with pytest.raises(ValueError, match="groups are of the method"):
        call(net, data, method="collapsed", groups="row")


@pytest.mark.parametrize("rule", [fe.BayesTune, fe.ReleasedCode])
def test_the_prior_of_old_is_the_value(rule: Callable[..., fe.Rule]) -> None:
    for former in (laplace_gamma, partial(laplace_gamma, alpha=0.01)):
        with pytest.warns(DeprecationWarning, match=r"LaplaceGamma\(alpha, beta\)"):
            assert rule(prior=former) == rule()
    typo: Any = {"scael": 1.0}
    with pytest.raises(TypeError, match="incorrect arguments"):
        rule(prior=partial(laplace_gamma, **typo))
    assert rule(prior=LaplaceGamma(beta=10.0)) != rule()
    assert fe.BayesTune(prior=horseshoe).default_batch_size is None


def test_a_selection_s_method_is_its_rule() -> None:
    found = select(network(), (X, LABELS), "random")
    with pytest.warns(DeprecationWarning, match=r"Selection.method is called Selection.rule"):
        assert found.method == found.rule == "random"


def test_the_bar_of_stage_1_shows_chain_and_loss(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "tqdm", partial(tqdm, mininterval=0.0))  # it draws every step
    select(*means(4), "bayestune", likelihood=observed_weights, num_chains=2, progress_bar=True)
    shown = capsys.readouterr().err
    assert "stage 1" in shown
    assert "chain=1, loss=" in shown


def test_weights_that_are_too_stiff_for_the_step_are_told() -> None:
    def notes(clamped: float) -> list[str]:
        tuning = Tuning(step_size=0.5, clamped=clamped)
        chains = SimpleNamespace(shorter=1.0, tuning=tuning, reference=None)
        return _step_notes(cast(ScaleChains, chains), 0)

    assert notes(0.005) == []
    assert notes(0.25) == [
        "25 % of the weights are stiffer than the step size 0.5 bears; their scales come out too "
        "large: lower step_size"
    ]
