"""Estimate free energies, rank checkpoints, and diagnose what was drawn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import ppl_fe as fe
from drawn import Case, first_of, randn
from drawn.sampling import FULL, PARTS, loader, regression, sample

X = randn(60, 4, seed=81)
LABELS = (X[:, 0] + X[:, 1] > 0).long()
DATA, HELD_OUT = (X[:40], LABELS[:40]), (X[40:], LABELS[40:])


def module(seed: int = 82, width: int = 5) -> nn.Module:
    """Make a small classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))


def network(**options: Any) -> fe.FlatNetwork:
    """Take that classifier as a function of one vector."""
    return fe.FlatNetwork(module(), **options)


def trained(steps: int) -> dict[str, Tensor]:
    """Train the classifier a little, for a checkpoint."""
    found = module(seed=steps)
    optimizer = torch.optim.SGD(found.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(found(DATA[0]), DATA[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in found.state_dict().items()}


def planted() -> tuple[fe.FlatNetwork, tuple[Tensor, Tensor]]:
    """Make a linear network and data that want two of its weights moved."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        found = fe.FlatNetwork(nn.Linear(30, 1))
    x = randn(100, 30, seed=9)
    output = found(found.anchor, x)[:, 0]
    return found, (x, output + 1.5 * x[:, 3] - 2.0 * x[:, 17] + randn(100, seed=10))


# Free energy ------------------------------------------------------------------------------------

SHORT: dict[str, Any] = {
    "num_chains": 2,
    "num_samples": 60,
    "warmup_steps": 60,
    "thinning": 2,
    "progress_bar": False,
}
NUMBERS = ("wbic", "wbic_mcse", "llc", "llc_mcse", "anchor_loss", "r_hat", "ess", "step_size")


def either(owner: Any, *names: str) -> Any:
    """Give the first attribute there is, of a name and an older one."""
    for name in names:
        if hasattr(owner, name):
            return getattr(owner, name)
    raise AttributeError(f"{type(owner).__name__} has none of {names}")


def estimate(data: Any = DATA, autocast: torch.dtype | None = None, **changed: Any) -> Any:
    """Estimate the free energy of the classifier."""
    found = fe.estimate_free_energy(network(autocast=autocast), data, **{**SHORT, **changed})
    numbers = {name: getattr(found, name) for name in NUMBERS}
    return {**numbers, "num_data": either(found, "num_data", "n"), "draws": found.draws}


def integrate() -> Any:
    """Integrate over a short ladder of temperatures."""
    options = {name: value for name, value in SHORT.items() if name != "thinning"}
    found = fe.integrate_free_energy(network(), DATA, num_rungs=4, localization=10.0, **options)
    names = ("free_energy", "mcse", "ladder_error", "ladder", "draws")
    return {name: getattr(found, name) for name in names}


def rank(**changed: Any) -> pd.DataFrame:
    """Rank three checkpoints, one of them in a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "third.safetensors"
        save_file(trained(60), path)
        states: dict[str, Any] = {"first": trained(10), "second": trained(30), "third": path}
        options = {"batch_size": 10, "localization": 10.0, **SHORT, **changed}
        return fe.rank_checkpoints(states, module(), DATA, **options)


def checkpoints() -> Any:
    """Read a checkpoint's tensors from a file, and its vector."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.safetensors"
        save_file(trained(10), path)
        return {"tensors": fe.read_checkpoint(path), "vector": fe.load_checkpoint(path, network())}


def programs(name: str, kernel: type[fe.Kernel] = fe.BAOAB) -> Any:
    """Sample a network's posterior under one of the library's priors."""
    found, data = planted()
    program = fe.models.bayestune_posterior(found, "normal", getattr(fe.models, name))
    return sample(kernel(program), *data)


# Can they be believed ---------------------------------------------------------------------------


def judged(data: tuple[Any, ...]) -> Any:
    """Diagnose a run, with the model's scores, and sum it up."""
    draws = sample(fe.BAOAB(regression), *data)
    stein = first_of("stein_check", "ppl_fe", "ppl_fe.diagnostics")(draws, regression, data)
    verdict = fe.diagnose(draws, difference=20.0, model=regression, data=data)
    return {
        "summary": fe.summary(draws),
        "checks": verdict.table.set_index("check"),
        "stein": {name: getattr(stein, name) for name in ("value", "p_value", "flip_probability")},
        "terms": fe.add_log_likelihood(draws, regression, data)["log_likelihood"].to_dataset()["y"],
    }


def judged_estimate() -> Any:
    """Diagnose the chains of an estimate, run again at half the step."""
    found = fe.estimate_free_energy(network(), DATA, check_half_step=True, **SHORT)
    return {"checks": fe.diagnose(found).table.set_index("check"), "draws": found.draws}


def tested(name: str) -> Any:
    """Hold normal draws against the score of their law."""
    draws = randn(4, 50, 3, seed=11).double()
    test: Callable[..., Any] = first_of(name, "ppl_fe", "ppl_fe.diagnostics")
    if name == "kernel_stein_discrepancy":
        return {"value": test(draws.flatten(0, 1), -draws.flatten(0, 1))}
    found = test(draws, -draws)
    return {name: getattr(found, name) for name in ("value", "p_value", "flip_probability")}


CASES: dict[str, Case] = {
    "free_energy_full": partial(estimate, batch_size=None),
    "free_energy_minibatch": partial(estimate, batch_size=10),
    "free_energy_sgld": partial(estimate, batch_size=10, kernel=fe.SGLD),
    "free_energy_sequential": partial(estimate, batch_size=10, chain_method="sequential"),
    "free_energy_parallel": partial(estimate, batch_size=10, chain_method="parallel"),
    "free_energy_loader": lambda: estimate(loader(*DATA)),
    "free_energy_autocast": partial(estimate, batch_size=10, autocast=torch.bfloat16),
    "thermodynamic": integrate,
    "ranking": partial(rank, held_out=HELD_OUT, baseline_columns=True),
    "ranking_full": partial(rank, batch_size=None),
    "checkpoints": checkpoints,
    **{
        f"prior_{name}": partial(programs, name)
        for name in ("gaussian", "student_t", "gaussian_scale_mixture", "horseshoe")
    },
    "judged_full": partial(judged, FULL),
    "judged_minibatch": partial(judged, PARTS),
    "judged_estimate": judged_estimate,
    "stein_test": partial(tested, "stein_test"),
    "kernel_stein_discrepancy": partial(tested, "kernel_stein_discrepancy"),
}  # fmt: skip
