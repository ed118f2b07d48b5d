"""λ̂ at the defaults of `estimate_free_energy`: has it mixed, how well is it known, is it right?

    OMP_NUM_THREADS=1 python benchmarks/local_estimates.py [--seeds 30] [--only NAME] [--former 2]
        [--output benchmarks/results/local_estimates.txt]

Three posteriors, one call a seed with no setting beside the data: a quadratic loss of ten weights
whose curvatures differ a thousand times, a network 64-16-10 trained on scikit-learn's digits, and
reduced-rank regression (5, 5, 3) at its most singular point. z is (λ̂ − exact)/error; of the digits
"exact" is a run of 12,000 trajectories, whose own error is in z. With `--former` the same calls for
so many seeds by what used to be the defaults, `kernel=fe.BAOAB, batch_size=256`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from math import hypot, log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from printed import add_output, show, torch_and_load
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ppl_fe as fe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

FORMER: dict[str, Any] = {"kernel": fe.BAOAB, "batch_size": 256}


class Case(NamedTuple):
    """A network at w*, its data, options of the call, and λ̂ with its error."""

    network: fe.FlatNetwork
    data: tuple[Tensor, Tensor]
    options: dict[str, Any]
    exact: tuple[float, float]


def quadratic() -> Case:
    """½ tr[nβH (nβH + γ)⁻¹], D = 10, n = 600, largest curvature one."""
    torch.manual_seed(0)
    scale = torch.logspace(-3, 0, 10).sqrt()
    inputs = torch.linalg.qr(torch.randn(600, 10)).Q * 600**0.5 * scale
    module = nn.Linear(10, 1, bias=False)
    nn.init.zeros_(module.weight)
    scaled = (inputs.mT @ inputs).double() / log(600)
    exact = 0.5 * float(torch.trace(scaled @ torch.linalg.inv(scaled + torch.eye(10))))
    options = {"likelihood": "normal"}
    return Case(fe.FlatNetwork(module), (inputs, torch.zeros(600)), options, (exact, 0.0))


def digits() -> Case:
    """All 1,797 digits, 1,210 weights, trained to a loss of about 0.001."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    module = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(2000):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network = fe.FlatNetwork(module)
    long: dict[str, Any] = {"num_samples": 1500, "warmup_steps": 300, "thinning": 1}
    found = fe.estimate_free_energy(
        network, (x, y), kernel=fe.MALT, num_chains=8, seed=10**6, progress_bar=False, **long
    )
    print(f"digits, the long run: {found}", flush=True)
    return Case(network, (x, y), {}, (found.llc, found.llc_mcse))


class ReducedRank(nn.Module):
    """y = BAx of rank 3 at A = 0, B = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(torch.zeros(3, 5)), nn.Parameter(torch.zeros(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5) -> (N, 5)."""
        return x @ self.A.T @ self.B.T


def reduced_rank() -> Case:
    """n = 500 rows in all directions alike; exact by quadrature over the spectrum of A."""
    from exact import reduced_rank_llc

    n = 500
    x = 5**0.5 * torch.eye(5).repeat(n // 5, 1)
    exact = reduced_rank_llc(5, 5, 3, n_beta=n / log(n), gamma=1.0)
    options = {"likelihood": "normal"}
    return Case(fe.FlatNetwork(ReducedRank()), (x, torch.zeros(n, 5)), options, (exact, 0.0))


CASES: dict[str, Callable[[], Case]] = {
    "quadratic": quadratic,
    "digits": digits,
    "reduced_rank": reduced_rank,
}


def rows(name: str, case: Case, seeds: int, how: dict[str, Any]) -> list[dict[str, float]]:
    """One call a seed."""
    found = []
    for seed in range(seeds):
        wall, processor = time.perf_counter(), time.process_time()
        one = fe.estimate_free_energy(
            case.network, case.data, seed=seed, progress_bar=False, **case.options, **how
        )
        exact, error = case.exact
        attrs = one.draws.attrs
        row = {
            "llc": one.llc,
            "error": one.llc_mcse / one.llc,
            "z": (one.llc - exact) / hypot(one.llc_mcse, error),
            "gradients": attrs["num_gradients"],
            "passes": attrs["num_gradients"] * 4 * attrs["batch_size"] / len(case.data[0]),
            "wall": time.perf_counter() - wall,
            "processor": time.process_time() - processor,
            "noted": float(bool(one.notes)),
        }
        found.append(row)
        print(name, seed, {k: round(v, 4) for k, v in row.items()}, *one.notes, flush=True)
    return found


HEADER = (
    f"{'posterior':13}{'by':22}seeds noted  exact   mean  error, %  worst  rms z worst  "
    "gradients  passes  seconds  processor"
)


def line(name: str, how: str, case: Case, found: list[dict[str, float]]) -> str:
    """One line of the table: medians, where nothing else is said."""
    each = {key: np.array([row[key] for row in found]) for key in found[0]}
    middle = {key: float(np.median(values)) for key, values in each.items()}
    rms, worst = np.sqrt(np.mean(each["z"] ** 2)), np.abs(each["z"]).max()
    return (
        f"{name:13}{how:22}{len(found):5} {int(each['noted'].sum()):5} {case.exact[0]:6.3f} "
        f"{each['llc'].mean():6.3f} {100 * middle['error']:9.1f} {100 * each['error'].max():6.1f}"
        f" {rms:6.2f} {worst:5.1f} {middle['gradients']:10.0f} {middle['passes']:7.0f}"
        f" {middle['wall']:8.1f} {middle['processor']:10.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--only", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument("--former", type=int, default=0, help="seeds of the former defaults")
    add_output(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    load, lines = os.getloadavg()[0], [HEADER]
    for name in given.only:
        case = CASES[name]()
        for how, seeds, options in (
            ("the defaults", given.seeds, {}),
            ("BAOAB, batches of 256", given.former, FORMER),
        ):
            if seeds:
                lines.append(line(name, how, case, rows(name, case, seeds, options)))
    lines.append(torch_and_load(load))
    show("\n".join(lines), given.output)


if __name__ == "__main__":
    main()
