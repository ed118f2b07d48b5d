"""The benchmark of how hard tasks pull at weights: its pulls are gradients, its table complete."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases.scripts import run_script

import ppl_fe as fe

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def test_pulls_are_gradients_of_the_log_likelihood() -> None:
    import pull
    from glue.synthetic import quick_problem

    problem = quick_problem("cb", 0)
    network, (inputs, targets) = problem.network, problem.training
    one, other = pull.pulls(problem, 4)
    tuned = fe.finetune(
        network, problem.training, method="head", head="head", learning_rate=1e-2, num_steps=4,
        batch_size=16, progress_bar=False,
    )  # fmt: skip
    vector = tuned.weights.clone().requires_grad_(True)
    rows = {name: values[:64] for name, values in inputs.items()}
    loss = torch.nn.functional.cross_entropy(network(vector, rows), targets[:64])
    (gradient,) = torch.autograd.grad(len(targets) * loss, vector)
    outside = torch.ones_like(gradient, dtype=torch.bool)
    for name in ("head.weight", "head.bias"):
        outside[network.slices[name]] = False
    torch.testing.assert_close(0.5 * (one + other), gradient[outside], rtol=1e-4, atol=1e-5)


def test_a_row_for_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(ROOT / "benchmarks" / "pull.py", "--quick", "--tasks", "cb") == 0
    *_, titles, row = capsys.readouterr().out.splitlines()
    assert titles.split()[:2] == ["task", "n"]
    assert row.split()[:2] == ["cb", "72"]
    assert float(row.split()[2]) < float(row.split()[3])
