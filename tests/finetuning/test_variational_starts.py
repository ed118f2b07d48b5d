"""Where chains under a prior of one's own begin: in which coordinates, and near the posterior."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases.selection import SD, Means, observed_weights
from ppl_fe.models.bayestune import BayesTunePosterior, Prior, bayestune_posterior
from ppl_fe.models.centring import UNIT, held, site_values
from ppl_fe.models.priors import PRIOR_EXAMPLE
from torch import Tensor

import ppl_fe as fe
from ppl_fe.finetuning.custom_prior import variational_starts
from ppl_fe.finetuning.custom_prior.custom_prior import check_prior
from ppl_fe.finetuning.custom_prior.variational_starts import settle

# Too short to be believed, which is not what is asked here.
pytestmark = pytest.mark.filterwarnings("ignore:warmup_steps=:RuntimeWarning")

OBSERVED = torch.tensor([0.0, -0.05, 2.0, -3.0])
NETWORK = fe.FlatNetwork(Means(len(OBSERVED)))
DATA = torch.zeros(1, 1), OBSERVED[None]


def own_scales(anchor: Tensor) -> Tensor:
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones_like(anchor)).to_event(1))
    w: Tensor = pyro.sample("w", dist.Normal(anchor, scale).to_event(1))
    return w


def one_scale(anchor: Tensor) -> Tensor:
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    w: Tensor = pyro.sample("w", dist.Normal(anchor, spread).to_event(1))
    return w


def improper(anchor: Tensor) -> Tensor:
    real = dist.constraints.real_vector
    w: Tensor = pyro.sample("w", dist.ImproperUniform(real, (), anchor.shape))
    return w


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variational_starts, "STEPS", 250)


def make(prior: Prior) -> BayesTunePosterior:
    return bayestune_posterior(NETWORK, observed_weights, prior, num_data=1)


def test_weights_that_the_data_hold_are_centred_and_begin_where_they_hold_them() -> None:
    program, start = settle(make, own_scales, DATA, num_chains=3, seed=0)
    for chain in range(3):
        scale, unit = start["scale"][chain].exp(), start[UNIT][chain]
        sites = {"scale": scale, UNIT: unit}
        w = site_values(lambda sites=sites: held(program.prior, sites)(NETWORK.anchor))["w"]  # type: ignore[misc]
        # Those far off in units of their error are in coordinates of their own, the others in
        # units of their scales; all begin nearer to where the data hold them than to the anchor.
        torch.testing.assert_close(unit[2:], w[2:])
        torch.testing.assert_close(unit[:2] * scale[:2], w[:2])
        assert ((w - OBSERVED)[:2].abs() < 6 * SD).all()
        assert ((w - OBSERVED)[2:].abs() < 0.6 * OBSERVED[2:].abs()).all()


def select(prior: Any) -> fe.Selection:
    rule = fe.BayesTune(prior=prior, num_chains=2, num_samples=30, warmup_steps=50, thinning=2)
    return fe.select_parameters(
        NETWORK, DATA, likelihood=observed_weights, rule=rule, sparsity=0.5, progress_bar=False
    )


def test_weights_in_coordinates_of_their_own_are_read_back() -> None:
    """Each is observed, with an error far below the prior's spread of about one."""
    found = select(one_scale)
    assert found.notes[0] == "scores are posterior means of |w - anchor|"
    torch.testing.assert_close(found.score[2:], OBSERVED[2:].abs(), atol=0.15, rtol=0)
    assert (found.score[:2] < 3 * SD).all()


@pytest.mark.thorough
def test_a_scale_a_weight_is_its_score() -> None:
    found = select(own_scales)
    assert found.notes[0] == "scores are posterior means of scale"
    assert found.scale_mean is not None
    assert torch.equal(found.score, found.scale_mean)
    assert found.mask.tolist() == [False, False, True, True]


def test_what_cannot_be_drawn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="which an improper one cannot; for example") as refused:
        select(improper)
    assert str(refused.value).endswith(PRIOR_EXAMPLE)


def test_a_prior_whose_arguments_cannot_be_read_is_taken_as_it_is() -> None:
    assert check_prior(max) is max  # of Python's own: written in C, without a signature
