"""What `benchmarks/stage_two.py` counts, and that its quick form runs."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def test_the_state_of_adamw_is_two_numbers_a_weight() -> None:
    from stage_two import held

    weights = nn.Parameter(torch.ones(30))
    optimizer = torch.optim.AdamW([weights])
    weights.grad = torch.ones(30)
    optimizer.step()
    assert held(optimizer) == 2 * 30 + 1  # and the count of steps


def test_the_quick_form_runs() -> None:
    from stage_two import SHARE, report

    told = report(quick=True, rounds=1)
    assert re.search(r"stage 2 : plain SGD \d+\.\d\d ", told)
    found = re.search(r"AdamW's on all weights ([\d.]+)%", told)
    assert found is not None
    assert float(found[1]) / 100 == pytest.approx(SHARE, rel=0.1)
