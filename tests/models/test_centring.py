"""A weights site in other coordinates: the same law of the weights."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from ppl_fe.models import gaussian_scale_mixture, horseshoe, student_t
from ppl_fe.models.centring import UNIT, centred_in_part, hangs_on_others, held, site_values
from pyro import poutine
from torch import Tensor

ANCHOR = torch.tensor([1.0, -2.0, 0.0])
SHARE = torch.tensor([0.0, 0.4, 1.0])


def ties(anchor: Tensor) -> Tensor:
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    w: Tensor = pyro.sample("w", dist.StudentT(5.0, anchor, tau).to_event(1))
    return w


@pytest.mark.parametrize("prior", [horseshoe, ties])
def test_density_and_weights_are_those_of_the_prior_itself(prior: object) -> None:
    torch.manual_seed(0)
    given = {"tau": torch.tensor(0.3), "w": torch.tensor([1.2, -2.5, 0.1])}
    scale = given["tau"].expand(3)
    if prior is horseshoe:
        given["scale"] = torch.tensor([0.5, 2.0, 4.0])
        scale = scale * given["scale"]
    plain = poutine.trace(held(prior, given)).get_trace(ANCHOR)  # type: ignore[arg-type]
    moved = poutine.trace(
        centred_in_part(held(prior, given), SHARE)  # type: ignore[arg-type]
    ).get_trace(ANCHOR)
    assert torch.allclose(moved.nodes["_RETURN"]["value"], given["w"])
    # log p(v) = log p(w) + log |dw/dv|, and w = ... + scale^(1 - c) v.
    expected = plain.log_prob_sum() + ((1 - SHARE) * scale.log()).sum()
    assert moved.log_prob_sum().item() == pytest.approx(expected.item(), rel=1e-5)
    unit = site_values(lambda: centred_in_part(held(prior, given), SHARE)(ANCHOR))[UNIT]  # type: ignore[arg-type]
    assert unit[0].item() == pytest.approx((0.2 / scale[0]).item(), rel=1e-5)
    assert unit[2].item() == pytest.approx(0.1, rel=1e-5)


def test_which_priors_hang_on_other_sites() -> None:
    found = [
        hangs_on_others(lambda prior=prior: prior(ANCHOR))  # type: ignore[misc]
        for prior in (horseshoe, ties, student_t, gaussian_scale_mixture)
    ]
    assert found == [True, True, False, False]
