"""Reduced-rank regression y = BAx with true product zero: the most singular point there is.

`pytest -s` shows the table, with the asymptotic coefficient of Aoyagi & Watanabe (2005) beside.
"""

from __future__ import annotations

import math

import pytest
import torch
from exact import reduced_rank_gibbs_llc, reduced_rank_learning_coefficient, reduced_rank_llc
from torch import Tensor, nn

import ppl_fe as fe

N = 20_000
BETA = 1 / math.log(N)


class ReducedRank(nn.Module):
    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(hidden, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.A.T @ self.B.T


CASES = [  # M, N, H and an exact Gibbs sampler's value, known to 0.02
    pytest.param(5, 5, 3, 6.25, id="5-5-3"),
    *(
        pytest.param(*case, id="-".join(map(str, case[:3])), marks=pytest.mark.slow)
        for case in [(5, 5, 4, 7.84), (4, 8, 3, 5.97), (8, 4, 3, 5.97), (3, 4, 8, 5.99)]
    ),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("inputs", "outputs", "hidden", "gibbs"), CASES)
def test_learning_coefficient(inputs: int, outputs: int, hidden: int, gibbs: float) -> None:
    # Rows whose second moment is the identity stand for n of them: β makes up for their number.
    x = math.sqrt(inputs) * torch.eye(inputs)
    found = fe.estimate_free_energy(
        fe.FlatNetwork(ReducedRank(inputs, outputs, hidden)),
        (x, torch.zeros(inputs, outputs)),
        likelihood="normal",
        inverse_temperature=N * BETA / inputs,
        batch_size=None,
        num_chains=256,
        num_samples=100,
        thinning=20,
        warmup_steps=2000,
        compile="traced",
        progress_bar=False,
    )
    exact = reduced_rank_llc(inputs, outputs, hidden, n_beta=N * BETA, gamma=1.0)
    asymptotic = reduced_rank_learning_coefficient(inputs, outputs, hidden, 0)
    print(
        f"({inputs}, {outputs}, {hidden}, 0)  llc {found.llc:.3f} ± {found.llc_mcse:.3f}  "
        f"exact {exact:.3f} ({found.llc / exact - 1:+.1%})  "
        f"asymptotic {asymptotic:.2f} ({found.llc / asymptotic - 1:+.1%})"
    )
    assert found.llc_mcse < 0.02 * exact
    assert abs(found.llc - exact) < max(3 * found.llc_mcse, 0.03 * exact)
    assert abs(found.llc - gibbs) < max(3 * math.hypot(found.llc_mcse, 0.02), 0.03 * gibbs)


@pytest.mark.slow
def test_minibatches_of_sampled_inputs() -> None:
    inputs, outputs, hidden = 5, 5, 3
    x = torch.randn(N, inputs, generator=torch.Generator().manual_seed(71))
    found = fe.estimate_free_energy(
        fe.FlatNetwork(ReducedRank(inputs, outputs, hidden)),
        (x, torch.zeros(N, outputs)),
        likelihood="normal",
        batch_size=500,
        num_chains=16,
        num_samples=800,
        thinning=20,
        warmup_steps=3000,
        compile="traced",
        progress_bar=False,
    )
    second_moment = (x.T @ x).double().numpy() / N
    exact = reduced_rank_gibbs_llc(
        inputs, outputs, hidden, n_beta=N * BETA, second_moment=second_moment
    )
    error = math.hypot(found.llc_mcse, exact.mcse)
    print(f"minibatches: llc {found.llc:.3f} ± {found.llc_mcse:.3f}  exact {exact.llc:.3f}")
    assert found.llc_mcse < 0.02 * exact.llc
    assert abs(found.llc - exact.llc) < max(3 * error, 0.03 * exact.llc)
