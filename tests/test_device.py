"""The device's part of these tests: what a processor gives, a CUDA device gives, too.

Nothing is drawn from the same numbers there, so results are held to each other by their errors.
`benchmarks/device.py` runs these tests where there is a device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ppl_fe as fe

N = 300
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.thorough),
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a device")
    ),
]
pytestmark = pytest.mark.parametrize("device", DEVICES)


def problem(device: str) -> tuple[fe.FlatNetwork, tuple[Tensor, Tensor]]:
    """A linear network and data that its first two inputs tell apart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, generator=generator)
    y = (x[:, 0] - x[:, 1] + 0.5 * torch.randn(N, generator=generator) > 0).long()
    torch.manual_seed(0)
    return fe.FlatNetwork(nn.Linear(6, 2).to(device)), (x.to(device), y.to(device))


def estimate(device: str, **changed: Any) -> fe.FreeEnergyEstimate:
    network, data = problem(device)
    length = {"num_samples": 200, "warmup_steps": 300, "thinning": 5}
    options: dict[str, Any] = {"batch_size": 100, "localization": 10.0, **length, **changed}
    return fe.estimate_free_energy(network, data, progress_bar=False, **options)


def test_an_estimate_is_that_of_a_processor(device: str) -> None:
    there, here = estimate(device, seed=1), estimate("cpu", seed=2)
    assert there.anchor_loss == pytest.approx(here.anchor_loss, rel=1e-4)
    assert abs(there.llc - here.llc) < 4 * np.hypot(there.llc_mcse, here.llc_mcse)


def test_exact_trajectories_agree_with_minibatches(device: str) -> None:
    exact, noisy = estimate(device, kernel=fe.MALT, batch_size=None), estimate("cpu")
    assert abs(exact.llc - noisy.llc) < 4 * np.hypot(exact.llc_mcse, noisy.llc_mcse)


def test_equal_seeds_give_equal_draws_and_a_complete_run_is_read(
    device: str, tmp_path: Path
) -> None:
    length = {"num_samples": 20, "warmup_steps": 20, "save_to": tmp_path / "run.zarr"}
    once = estimate(device, **length)
    read, again = (
        estimate(device, **length, resume=True),
        estimate(device, **length | {"save_to": None}),
    )
    for other in (read, again):
        np.testing.assert_array_equal(other.draws.posterior["w"], once.draws.posterior["w"])


def test_a_selection_finds_what_tells_classes_apart(device: str) -> None:
    network, data = problem(device)
    rule = fe.BayesTune(num_samples=50, warmup_steps=200, thinning=2)
    selection = fe.select_parameters(network, data, rule=rule, sparsity=0.3, progress_bar=False)
    assert selection.mask.device.type == device
    columns = selection.mask[:12].reshape(2, 6).any(0).cpu()
    assert columns[:2].all()


def test_entries_outside_the_mask_stay_bit_for_bit(device: str) -> None:
    network, data = problem(device)
    mask = torch.arange(14, device=device) % 2 == 0
    tuned = fe.finetune(network, data, mask=mask, num_steps=50, progress_bar=False)
    assert torch.equal(tuned.weights[~mask], network.anchor[~mask])
    assert tuned.history["loss"].iloc[-10:].mean() < tuned.history["loss"].iloc[:10].mean()
