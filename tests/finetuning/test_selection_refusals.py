"""What `select_parameters` refuses, each with one clear message."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from ppl_fe.models import horseshoe, laplace_gamma, student_t
from ppl_fe.models.priors import PRIOR_EXAMPLE
from small_selection import OBSERVED, PRIOR, SD, means, observed_weights, select
from small_tuning import HEAD, LABELS, X, network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ppl_fe.finetuning.knees import find_knees
from ppl_fe.finetuning.stage_one import StageOneError
from ppl_fe.networks.flat import FlatNetwork


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method must be one of"),
        ({"sparsity": 0.0}, "sparsity must lie between 0 and 1"),
        ({"sparsity": 1.0}, "sparsity must lie between 0 and 1"),
        ({"sparsity": "all"}, "sparsity must be a number in"),
        ({"sparsity": 0.001}, "selects 0; one parameter is 0.027"),
        ({"sparsity": 0.999}, "selects 37; one parameter is"),
        ({"method": "magnitude", "threshold": 100.0}, "selects nothing, 0 of 37; scores run from"),
        ({"method": "magnitude", "threshold": -1.0}, "selects everything, 37 of 37"),
        ({"count_top": True, "sparsity": "knee"}, "count_top needs a number as sparsity"),
        ({"count_top": True, "method": "random"}, "count_top needs"),
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"data_size": 0.0}, "data_size must be a positive number"),
        ({"step_size": -1.0}, "step_size must be 'auto' or a positive number"),
        ({"head": "nowhere"}, "names no parameter"),
        ({"prior": partial(laplace_gamma, groups=torch.zeros(37, dtype=torch.long))}, "groups"),
        ({"prior": partial(laplace_gamma, alpha=1e9)}, "alpha must lie in"),
        ({"prior": horseshoe}, "method='collapsed' and count_top are of the prior laplace_gamma"),
        ({"prior": horseshoe, "method": "paper"}, "method='paper' has the prior laplace_gamma"),
        (
            {"prior": student_t, "method": "bayestune", "num_samples": 10**6},
            "only laplace_gamma goes through large networks",
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
        select(FlatNetwork(nn.Linear(4, 400)), (X, LABELS), method="random", sparsity="knee")
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
    with pytest.raises(StageOneError, match=r"chain 0, step \d+ of 240, .*loss is nan") as caught:
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

    with pytest.raises(StageOneError, match=r"chain 0, step \d+ of 2050, .*likelihood") as caught:
        select(net, data, likelihood=failing, num_samples=1000, step_size=0.05)
    before = caught.value.scale_mean
    assert before is not None
    assert before.shape == (10,)
    assert bool((before > 0).all())


def test_a_step_that_diverges_says_so() -> None:
    net, data = means(2)
    with pytest.raises(StageOneError, match="lower step_size=10"):
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
    settings: dict[str, Any] = {"likelihood": "normal", "num_samples": 200, "batch_size": None}
    found = select(net, data, **settings)
    assert found.scale_mean is not None
    assert bool(found.scale_mean.isfinite().all())
    (note,) = [note for note in found.notes if "times shorter" in note]
    times = int(note.split(" times shorter")[0].split()[-1])
    assert times in (4, 16, 64)
    with pytest.raises(StageOneError, match="lower step_size"):
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
        (partial(laplace_gamma, **TYPO), WRONG + ".*scael=0.1.* has incorrect arguments.*"),
        ("horseshoe", "prior must be a function of the anchor, got a str; "),
        (dist.Normal(torch.zeros(37), 1.0), "a function of the anchor, got a Normal; "),
        (misnamed, r"prior must sample the site 'w' .*, its sites are \['weights'\]; "),
    ],
)
def test_a_prior_that_is_none_is_shown_one(prior: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{message}.*write the like of") as raised:
        select(network(), (X, LABELS), prior=prior, method="bayestune")
    assert str(raised.value).endswith(PRIOR_EXAMPLE)


def test_the_prior_shown_is_one() -> None:
    space: dict[str, Any] = {"pyro": pyro, "dist": dist}
    exec(PRIOR_EXAMPLE.strip("`"), space)
    own = {"prior": space["prior"], "method": "bayestune", "step_size": 1e-3, "batch_size": 8}
    found = select(network(), (X, LABELS), **own)
    assert found.score.isfinite().all()
    # 50 + 20 x 2 steps on minibatches are far too few, and it says so.
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
        FlatNetwork(Two()), data, likelihood=observed_weights, head="head", method="bayestune",
        prior=partial(student_t, scale=0.1), warmup_steps=500, num_samples=1000, thinning=5,
        num_chains=4, sparsity=0.2,
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


@pytest.mark.parametrize("prior", [laplace_gamma, partial(student_t, scale=0.1)])
def test_a_likelihood_without_an_observed_site_is_refused(prior: Any) -> None:
    def returned(output: Tensor, targets: Tensor) -> object:
        return dist.Normal(output[:, 0], 1.0).log_prob(targets)

    with pytest.raises(ValueError, match=r"no observed site \(pyro.sample\(\.\.\., obs=targets"):
        select(network(), (X, LABELS), method="bayestune", likelihood=returned, prior=prior)


def test_a_bare_module_is_refused() -> None:
    module: Any = network().module
    with pytest.raises(TypeError, match=r"got Sequential; wrap the module: fe.FlatNetwork\(module"):
        select(module, (X, LABELS))
