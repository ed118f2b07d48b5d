"""Whether scores tell parameters apart, or only the luck of their chains."""

from __future__ import annotations

import pytest
import torch
from cases.selection import select
from ppl_fe.models import LaplaceGamma
from torch import nn

from ppl_fe.finetuning.score_notes import chance_notes, reliability
from ppl_fe.finetuning.scoring import Scores
from ppl_fe.finetuning.selection import Selection
from ppl_fe.networks.flat import FlatNetwork

SIZE, ROWS = 500, 1_000


def chosen(num_moved: int, alpha: float, beta: float, seed: int) -> Selection:
    """A linear regression of noise 1, of whose coefficients some moved by 0.15 or so."""
    generator = torch.Generator().manual_seed(0)
    network = FlatNetwork(nn.Linear(SIZE, 1, bias=False))
    network.anchor.zero_()
    truth = torch.zeros(SIZE)
    truth[:num_moved] = 0.15 * torch.randn(num_moved, generator=generator)
    x = torch.randn(ROWS, SIZE, generator=generator)
    y = x @ truth + torch.randn(ROWS, generator=generator)
    prior = LaplaceGamma(alpha, beta)
    return select(
        network, (x, y), likelihood="normal", rule="bayestune", prior=prior, sparsity=0.1,
        batch_size=ROWS, warmup_steps=100, num_samples=20, thinning=4, num_chains=2, seed=seed,
        data_size=float(ROWS),
    )  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(("num_moved", "alpha", "beta"), [(250, 5.0, 50.0), (0, 0.01, 100.0)])
def test_it_is_the_correlation_of_two_runs(num_moved: int, alpha: float, beta: float) -> None:
    runs = [chosen(num_moved, alpha, beta, seed) for seed in (0, 1)]
    stated = [reliability(Scores(run.score, mcse=run.mcse)) for run in runs]
    correlation = float(torch.corrcoef(torch.stack([run.score for run in runs]))[0, 1])
    # 1/√500 is the standard error of a correlation of nothing, and of the heavy tails some more.
    assert stated == pytest.approx([correlation] * 2, abs=4 / SIZE**0.5)
    said = any("another seed would select others" in note for note in runs[0].notes)
    assert said == (num_moved == 0)


def test_what_has_no_error_or_no_differences_says_nothing() -> None:
    score = torch.tensor([1.0, 2.0, 3.0, float("nan")])
    error = torch.tensor([0.1, 0.1, 0.1, float("nan")])
    assert reliability(Scores(score)) is None
    assert reliability(Scores(torch.ones(4), mcse=error)) is None
    assert reliability(Scores(score, mcse=error)) == pytest.approx(0.99)
    assert chance_notes(Scores(score, mcse=error)) == []
    (note,) = chance_notes(Scores(score, mcse=2 * torch.ones(4)))
    assert note.startswith("100 % of the variance of the scales")
