"""Which of 40 real checkpoints transfers best to another allele, told from a few measured peptides?

    pip download --no-deps mhcnuggets==2.4.1
    unzip mhcnuggets-*.whl -d unpacked && pip install h5py
    python benchmarks/mhc.py --package unpacked/mhcnuggets [--targets 20] [--labels 25]
        [--parts features ...] [--candidates 40] [--check] [--table] [--quick]

mhcnuggets (Shao et al. 2020, Apache licence) brings recurrent networks of one architecture, 26,241
weights each, one an MHC class I allele, and the peptides they were trained on. A target is an
allele whose name's SHA-256 ends in an even hexadecimal digit; **the odd ones are kept for checking
what was chosen by these, with --check, and nothing is ever chosen by them**, though their networks
may be candidates. Candidates are networks of other alleles, drawn at random. Peptides that any
candidate has seen are dropped; of the rest a few are labelled, and up to 600 others are what a
candidate's fine-tuning is judged by: Spearman's correlation with 1 − log IC50 / log 50000 after 100
full-batch steps of Adam at 1e-3 on the labels, all weights. A criterion's regret is the best
candidate's correlation less that of the one chosen. The likelihood is N(output, 0.2²), and γ is
100, at which these chains mix. Results are kept one part of a target a line, and none is run twice.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from few_labels import both_free_energies
from kept_lines import Record, keep, read
from printed import say
from torch import Tensor, nn
from torch.func import grad, vmap

import ppl_fe as fe
from ppl_fe.free_energy.downstream.consensus import consensus
from ppl_fe.free_energy.downstream.criteria import CRITERIA, HIGHER_IS_BETTER
from ppl_fe.free_energy.downstream.prediction_scores import rank_correlation

LETTERS, LENGTH, UNITS = "ACDEFGHIKLMNPQRSTVWYX", 15, 64
NUM_UNSEEN, LEAST_UNSEEN = 600, 100
NOISE, LOCALIZATION = 0.2, 100.0
RESULTS = Path(__file__).parent / "results"
PARTS = {
    "features": [
        "zero_shot_loss",
        "zero_shot_score",
        "logme",
        "knn_score",
        "ridge_score",
    ],
    "linearized": ["linearized_free_energy", "linearized_score"],
    "finetunes": ["finetune_loss"],
    "sampled": ["free_energy", "expected_loss"],
}
# The sampled part is the dear one: a step of one chain of this network takes milliseconds.
LENGTH_OF_CHAINS: dict[str, Any] = {
    "num_rungs": 8,
    "num_chains": 2,
    "num_samples": 200,
    "warmup_steps": 100,
}


class Binder(nn.Module):
    """The architecture: an LSTM of 64 units over a peptide, then 64 tanh, then one sigmoid.

    Inputs (B, L, 21) are letters, 0.9 where it is this one and 0.005 elsewhere; zeros pad the end,
    up to any L.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(len(LETTERS), 4 * UNITS))
        self.recurrent = nn.Parameter(torch.zeros(UNITS, 4 * UNITS))
        self.bias = nn.Parameter(torch.zeros(4 * UNITS))
        self.dense = nn.Linear(UNITS, UNITS)
        self.output = nn.Linear(UNITS, 1)

    def forward(self, x: Tensor) -> Tensor:
        entered = x @ self.kernel + self.bias
        there = (x.sum(-1, keepdim=True) > 0.5).to(x)
        h = torch.zeros_like(entered[:, 0, :UNITS])
        c = h
        for k in range(x.shape[1]):
            i, f, g, o = (entered[:, k] + h @ self.recurrent).chunk(4, -1)
            new = hard_sigmoid(f) * c + hard_sigmoid(i) * torch.tanh(g)
            c = c + there[:, k] * (new - c)
            h = h + there[:, k] * (hard_sigmoid(o) * torch.tanh(c) - h)
        output: Tensor = torch.sigmoid(self.output(torch.tanh(self.dense(h))))
        return output


def hard_sigmoid(x: Tensor) -> Tensor:
    """Keras's, before 2.3."""
    return (0.2 * x + 0.5).clamp(0.0, 1.0)


def affinity(output: Tensor, targets: Tensor) -> None:
    """Observe y ~ N(output, 0.2²)."""
    pyro.sample("y", dist.Normal(output[:, 0], NOISE), obs=targets)


def encode(peptides: Sequence[str]) -> Tensor:
    """Letters as (B, 15, 21)."""
    x = torch.zeros(len(peptides), LENGTH, len(LETTERS))
    for row, peptide in enumerate(peptides):
        for place, letter in enumerate(peptide):
            x[row, place] = 0.1 / (len(LETTERS) - 1)
            x[row, place, LETTERS.index(letter)] = 0.9
    return x


def read_network(path: Path) -> dict[str, Tensor]:
    """A checkpoint of Keras as a state dict of `Binder`."""
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path) as file:

        def tensor(name: str) -> Tensor:
            return torch.tensor(np.array(file[name]), dtype=torch.float32)

        return {
            "kernel": tensor("lstm_1/lstm_1/kernel:0"),
            "recurrent": tensor("lstm_1/lstm_1/recurrent_kernel:0"),
            "bias": tensor("lstm_1/lstm_1/bias:0"),
            "dense.weight": tensor("dense_1/dense_1/kernel:0").T.contiguous(),
            "dense.bias": tensor("dense_1/dense_1/bias:0"),
            "output.weight": tensor("dense_2/dense_2/kernel:0").T.contiguous(),
            "output.bias": tensor("dense_2/dense_2/bias:0"),
        }


def is_target(name: str) -> bool:
    """Whether an allele may be a target: its name's SHA-256 ends in an even digit."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2 == 0


@cache
def measured(package: Path) -> dict[str, dict[str, float]]:
    """Allele, without its asterisk -> peptide -> 1 − log IC50 / log 50000, within [0, 1]."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    path = package / "data/production/mhcI/curated_training_data.csv"
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            peptide = row["peptide"]
            if len(peptide) <= LENGTH and set(peptide) <= set(LETTERS):
                score = 1 - math.log(max(float(row["IC50(nM)"]), 1.0)) / math.log(50000)
                found[row["mhc"].replace("*", "")][peptide] = min(max(score, 0.0), 1.0)
    return dict(found)


@cache
def networks(package: Path) -> dict[str, Path]:
    """Allele -> its network, of those whose peptides are there."""
    folder = package / "saves/production"
    paths = {path.name.removesuffix("_BA.h5"): path for path in sorted(folder.glob("*_BA.h5"))}
    return {name: path for name, path in paths.items() if name in measured(package)}


@dataclass(frozen=True)
class Problem:
    """One target: its candidates, the labelled rows and the unseen ones."""

    states: dict[str, dict[str, Tensor]]
    labelled: tuple[Tensor, Tensor]
    unseen: tuple[Tensor, Tensor]


def problem(package: Path, target: str, num_candidates: int, num_labels: int) -> Problem | None:
    """The problem of a target; None where too few peptides are left."""
    digest = hashlib.sha256(f"{target} {num_candidates}".encode()).hexdigest()
    rng = np.random.default_rng(int(digest[:16], 16))
    others = [name for name in networks(package) if name != target]
    names = [str(name) for name in rng.choice(others, min(num_candidates, len(others)), False)]
    seen = set().union(*(measured(package)[name] for name in names))
    left = sorted(set(measured(package)[target]) - seen)
    if len(left) < num_labels + LEAST_UNSEEN:
        return None
    order = [left[k] for k in rng.permutation(len(left))][: num_labels + NUM_UNSEEN]
    x = encode(order)
    y = torch.tensor([measured(package)[target][peptide] for peptide in order])
    states = {name: read_network(networks(package)[name]) for name in names}
    return Problem(states, (x[:num_labels], y[:num_labels]), (x[num_labels:], y[num_labels:]))


def targets(
    package: Path, count: int, num_candidates: int, num_labels: int, *, check: bool = False
) -> list[str]:
    """The first targets, in the order of their hashes, that leave enough peptides.

    To `check` a choice that is made, those that nothing was chosen by.
    """
    names = [name for name in networks(package) if is_target(name) != check]
    names.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    found: list[str] = []
    for name in names:
        enough = len(measured(package)[name]) >= num_labels + LEAST_UNSEEN
        if len(found) == count:
            break
        if enough and problem(package, name, num_candidates, num_labels) is not None:
            found.append(name)
    return found


def finetuned(task: Problem, num_steps: int) -> list[float]:
    """Spearman's correlation on unseen peptides of each candidate after fine-tuning."""
    network = fe.FlatNetwork(Binder())
    x, y = task.labelled

    def loss(w: Tensor) -> Tensor:
        error: Tensor = network(w, x)[:, 0] - y
        return error.square().mean()

    found: list[float] = []
    vectors = torch.stack([network.with_state(state).anchor for state in task.states.values()])
    for part in torch.split(vectors, 10):
        w = part.clone().requires_grad_()
        optimizer = torch.optim.Adam([w], lr=1e-3)
        for _ in range(num_steps):
            w.grad = vmap(grad(loss))(w.detach())
            optimizer.step()
        with torch.no_grad():
            outputs = [network(one, task.unseen[0])[:, 0] for one in w]
        found += [round(rank_correlation(one, task.unseen[1]), 4) for one in outputs]
    return found


def run(task: Problem, part: str, seed: int, quick: bool) -> Record:
    """Compute some criteria of all candidates, or what they are held against."""
    started = time.process_time()
    if part == "truth":
        columns = {"finetuned": finetuned(task, 2 if quick else 100)}
        return {"columns": columns, "seconds": round(time.process_time() - started, 1)}
    criteria = PARTS[part]
    length = LENGTH_OF_CHAINS | ({"num_samples": 4, "warmup_steps": 3} if quick else {})
    table = fe.choose_checkpoint(
        task.states, Binder(), task.labelled, by=criteria[0], criteria=criteria,
        features="output", likelihood=affinity, localization=LOCALIZATION, seed=seed,
        progress_bar=False, **length,
    ).loc[list(task.states)]  # fmt: skip
    numbers = [name for name in table if name not in ("note", "error", "ess")]
    return {
        "columns": {name: table[name].astype(float).round(4).tolist() for name in numbers},
        "seconds": round(time.process_time() - started, 1),
        "passes": table.attrs["passes"],
    }


def judged(records: Sequence[Record]) -> pd.DataFrame:
    """One row a criterion and number of labels: rank correlation and regret over the targets."""
    truths = {key(one): np.array(one["columns"]["finetuned"]) for one in records if is_truth(one)}
    rows: dict[tuple[int, str], list[tuple[float, float, float]]] = defaultdict(list)
    for one in records:
        truth = truths.get(key(one))
        if is_truth(one) or truth is None:
            continue
        for name in PARTS[one["part"]]:
            sign = 1.0 if name in HIGHER_IS_BETTER else -1.0
            values = sign * np.array(one["columns"][name])
            rho = rank_correlation(torch.tensor(values), torch.tensor(truth))
            worst = max(one["columns"].get("r_hat", [float("nan")]))
            rows[one["labels"], name].append((rho, truth.max() - truth[values.argmax()], worst))
    for one_key, truth in truths.items():
        for name, values in consensuses([one for one in records if key(one) == one_key]).items():
            rho = rank_correlation(torch.tensor(-values), torch.tensor(truth))
            rows[one_key[1], name].append((rho, truth.max() - truth[values.argmin()], float("nan")))
        rows[one_key[1], "at random"].append((0.0, truth.max() - truth.mean(), float("nan")))
    counts = sorted({labels for labels, _ in rows})
    together: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
    for name in sorted({name for _, name in rows}) if len(counts) > 1 else []:
        parts = [rows[labels, name] for labels in counts if (labels, name) in rows]
        if len(parts) == len(counts) and len({len(part) for part in parts}) == 1:
            together[0, name] = [one for part in parts for one in part]
    table = []
    for (labels, name), found in [*sorted(rows.items()), *together.items()]:
        rho, regret, worst = np.array(found).T
        table.append(
            {
                "labels": labels or "all",
                "criterion": name,
                "targets": len(found),
                "rank correlation": f"{rho.mean():+.2f} ± {sem(rho):.2f}",
                "regret": f"{regret.mean():.3f} ± {sem(regret):.3f}",
                "worst R-hat": "" if np.isnan(worst).all() else f"{np.nanmax(worst):.2f}",
            }
        )
    return pd.DataFrame(table).set_index(["labels", "criterion"])


def two_free_energies(records: Sequence[Record]) -> str:
    """How the linearised free energies order candidates beside the sampled ones."""
    found = [rank_correlation(*pair) for pair in both_free_energies(records, key)]
    if not found:
        return ""
    mean, error = np.mean(found), sem(np.array(found))
    return f"rank correlation of linearised and sampled free energies: {mean:+.2f} ± {error:.2f}"


def seconds(records: Sequence[Record]) -> str:
    """What a part took, in the mean over targets, by number of labels."""
    table = pd.DataFrame([{k: one[k] for k in ("part", "labels", "seconds")} for one in records])
    means = table.pivot_table(index="part", columns="labels", values="seconds").round(1)
    return f"seconds of a processor for all candidates of a target, by labels\n{means.to_string()}"


def consensuses(records: Sequence[Record]) -> dict[str, np.ndarray[Any, Any]]:
    """What `choose_checkpoint` orders by, of one problem: of the labels' pass alone, and of all."""
    columns = {name: values for one in records for name, values in one["columns"].items()}
    known = tuple(name for name in CRITERIA if name in columns)
    ways = {"consensus of one pass": tuple(PARTS["features"])}
    if "linearized_score" in known:
        ways["consensus without chains"] = (*PARTS["features"], *PARTS["linearized"])
    if "free_energy" in known:
        ways["consensus"] = known
    table = pd.DataFrame(columns)
    found = {name: consensus(table, own, fresh_head=False)[0] for name, own in ways.items()}
    return {name: values for name, values in found.items() if np.isfinite(values).all()}


def is_truth(record: Record) -> bool:
    """Whether it is what criteria are held against."""
    return bool(record["part"] == "truth")


def key(record: Record) -> tuple[str, int, int]:
    """Its problem."""
    return record["target"], record["labels"], record["candidates"]


def sem(values: np.ndarray[Any, Any]) -> float:
    """Standard error of a mean."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, help="the unpacked package's folder")
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--labels", type=int, nargs="+", default=[25])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--check", action="store_true", help="the alleles that are kept apart")
    parser.add_argument("--output", type=Path, help="mhc.jsonl, or mhc_check.jsonl of --check")
    parser.add_argument("--table", action="store_true", help="print what the file has; run nothing")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, for a test")
    options = parser.parse_args(argv)
    output = options.output or RESULTS / ("mhc_check.jsonl" if options.check else "mhc.jsonl")
    done = {(*key(one), one["part"]) for one in read(output)}
    count = options.candidates
    for labels in [] if options.table else options.labels:
        names = targets(options.package, options.targets, count, labels, check=options.check)
        for number, target in enumerate(names):
            task = problem(options.package, target, count, labels)
            assert task is not None
            for part in ["truth", *options.parts]:
                about = {"target": target, "labels": labels, "candidates": count, "part": part}
                if (target, labels, count, part) in done:
                    continue
                made = about | run(task, part, number, options.quick)
                keep([made], output)
                say(f"{target}, {labels} labels, {part}: {made['seconds']} s")
    records = read(output)
    print("\n".join([judged(records).to_string(), two_free_energies(records), seconds(records)]))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
