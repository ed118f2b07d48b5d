"""Without lengths an estimate goes on until its loss has mixed and λ̂ is known."""

from __future__ import annotations

from math import log, log10
from typing import Any

import pytest
import torch
from exact import z_score
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.inference.run.until import worst_loss
from ppl_fe.inference.targets import Targets


def linear(size: int, condition: float, num_data: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network at its minimum, the Hessian's condition as asked for, largest curvature one."""
    torch.manual_seed(0)
    scale = torch.logspace(-log10(condition), 0.0, size).sqrt()
    inputs = torch.linalg.qr(torch.randn(num_data, size)).Q * num_data**0.5 * scale
    module = nn.Linear(size, 1, bias=False)
    with torch.no_grad():
        module.weight.zero_()
    return module, inputs, torch.zeros(num_data)


def exact_llc(inputs: Tensor, localization: float) -> float:
    """½ tr[nβH (nβH + γ)⁻¹] of a quadratic loss."""
    scaled = (inputs.mT @ inputs).double() / log(len(inputs))
    within = torch.linalg.inv(scaled + localization * torch.eye(len(scaled)))
    return 0.5 * float(torch.trace(scaled @ within))


@pytest.mark.parametrize(
    ("size", "condition", "sampler"),
    [
        (3, 10.0, {}),
        pytest.param(
            *(3, 10.0, {"kernel": fe.BAOAB, "compile": "traced"}), marks=pytest.mark.thorough
        ),
        pytest.param(10, 1000.0, {}, marks=pytest.mark.thorough),
    ],
)
def test_an_estimate_without_lengths_has_mixed_and_is_right(
    size: int, condition: float, sampler: dict[str, Any]
) -> None:
    module, inputs, targets = linear(size, condition, 600)
    estimate = fe.estimate_free_energy(
        fe.FlatNetwork(module),
        (inputs, targets),
        likelihood="normal",
        progress_bar=False,
        **sampler,
    )
    assert estimate.notes == ()
    assert estimate.ess > 400
    assert estimate.llc_mcse < 0.03 * estimate.llc
    assert abs(z_score(estimate.llc, exact_llc(inputs, 1.0), estimate.llc_mcse)) < 4.5
    assert estimate.draws.attrs["target_missed"] == ""


def test_of_several_targets_each_is_judged_by_itself() -> None:
    """Chains of two checkpoints have different losses by right."""
    torch.manual_seed(0)
    losses = torch.randn(8, 600).double().numpy()
    losses[:4] += 100.0
    worst = worst_loss(losses, (90.0, -10.0))
    assert worst.reaches(Targets())
    assert worst.error[0] < 0.01
    losses[4] += 3.0
    apart = worst_loss(losses, (90.0, -10.0))
    assert apart.r_hat[1] == "loss of target 1"
    assert not apart.reaches(Targets())
