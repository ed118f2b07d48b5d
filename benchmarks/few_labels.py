"""Which of 24 digits networks transfers best, told from 25 labels of the new classes?

    python benchmarks/few_labels.py [--episodes 0 1 ...] [--parts features ...] [--fixed 10 30]

The networks are those of `ppl-fe demo`: trained on the digits 0-4 to one training loss, with four
learning rates, three pairs of batch size and momentum, two seeds. An episode shows five images of
each of the digits 5-9. Every criterion of `fe.choose_checkpoint` is held against the accuracy after
few-shot fine-tuning in 100 other episodes, by Pearson's r over the 24 (signs such that +1 is a
criterion that tells) and by the regret: the best network's accuracy less that of the one chosen.
`free_energy` is at the γ and the precision of the head's prior that four networks choose; `--fixed`
takes other γ at a precision of 1 or of `--head`, `--samples` chains of another length than 2000. Of
the γ that were given the table also shows, episode by episode, the one of the largest evidence, and
the one that the rule of "auto" takes among them.
Parts of episodes are kept one a line, and what the file has is not run again. Seconds are of one
processor, for all 24; passes are over the 25 images, for one of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from kept_lines import Record, keep, read
from printed import say
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.demo.digits import embedded_digits
from ppl_fe.demo.pretraining import digits_network, pretrain
from ppl_fe.demo.transfer import transfer
from ppl_fe.free_energy.downstream.consensus import consensus
from ppl_fe.free_energy.downstream.criteria import CONSENSUS, HIGHER_IS_BETTER
from ppl_fe.free_energy.neighbourhoods import TELLING, reliability

SHOTS, HEAD = 5, "4"
TRUTH_SEED = 1000  # of the episodes that the criteria are held against
RESULTS = Path(__file__).parent / "results" / "few_labels.jsonl"


@cache
def networks() -> dict[str, dict[str, Tensor]]:
    """The 24 checkpoints by name, whose head is fresh."""
    return {one.name: one.state_dict for one in pretrain(embedded_digits().training)}


@cache
def truth(num_episodes: int) -> pd.DataFrame:
    """Accuracy of each network over other episodes, and its standard error beside the others."""
    network = fe.FlatNetwork(digits_network())
    vectors = torch.stack([network.with_state(state).anchor for state in networks().values()])
    task = embedded_digits().tasks["new classes"]
    found = transfer(network, vectors, task, num_episodes=num_episodes, seed=TRUTH_SEED)
    columns = {"accuracy": found.mean.numpy(), "error": found.paired_error.numpy()}
    return pd.DataFrame(columns, index=list(networks()))


def episode(number: int) -> tuple[Tensor, Tensor]:
    """Five images of each new class."""
    task = embedded_digits().tasks["new classes"]
    order = torch.randperm(len(task.labels), generator=torch.Generator().manual_seed(number))
    rows = torch.cat([order[task.labels[order] == k][:SHOTS] for k in range(5)])
    return task.images[rows], task.labels[rows]


PARTS = {
    "features": ["logme", "knn_score", "ridge_score", "pactran"],
    "linearized": ["linearized_free_energy", "linearized_score"],
    "finetunes": ["finetune_loss"],
    "sampled": ["free_energy", "expected_loss"],
}


def called(
    part: str, localization: float | None, head_precision: float | None, num_samples: int | None
) -> str:
    """Name a part of an episode by what it is computed at, None for what is chosen or not used."""
    if part != "sampled":
        return part
    given = [] if localization is None else [f"{localization:g}"]
    given += [] if head_precision is None else [f"head {head_precision:g}"]
    given += [] if num_samples is None else [f"{num_samples} samples"]
    return f"{part} at {', '.join(given)}" if given else part


def run(
    number: int,
    part: str,
    localization: float | None,
    head_precision: float | None,
    length: dict[str, Any],
) -> Record:
    """Compute some criteria of all networks in an episode."""
    gamma: Any = localization or "auto"
    precision: Any = head_precision or ("auto" if localization is None else 1.0)
    if part not in ("sampled", "linearized"):  # of fine-tunes
        gamma, precision = 100.0, 1.0
    name = called(part, localization, head_precision, length.get("num_samples"))
    made = {"episode": number, "part": name} | computed(
        part, networks(), digits_network(), episode(number), head=HEAD, localization=gamma,
        head_precision=precision, seed=number, **length,
    )  # fmt: skip
    return made | ({"one_finetune": one_finetune(number)} if part == "linearized" else {})


def one_finetune(number: int) -> float:
    """Seconds of fine-tuning one network once in an episode, 100 steps of all its weights."""
    network = fe.FlatNetwork(digits_network()).with_state(next(iter(networks().values())))
    started = time.process_time()
    fe.finetune(
        network, episode(number), likelihood="categorical", method="full", num_steps=100,
        progress_bar=False,
    )  # fmt: skip
    return round(time.process_time() - started, 3)


def computed(
    part: str, states: Mapping[str, Any], module: nn.Module, data: Any, **how: Any
) -> Record:
    """The criteria of a part as `fe.choose_checkpoint` computes them, and what they cost."""
    started = time.process_time()
    table = fe.choose_checkpoint(
        states, module, data, by=PARTS[part][0], criteria=PARTS[part], progress_bar=False, **how
    ).loc[list(states)]
    left_out = ("note", "error", "ess", CONSENSUS, f"{CONSENSUS}_error")
    record: Record = {
        "seconds": round(time.process_time() - started, 2),
        "passes": table.attrs["passes"],
        "columns": {
            name: table[name].astype(float).round(4).tolist()
            for name in table
            if name not in left_out
        },
    }
    if part == "sampled":
        names = ("localization", "head_precision", "neighbourhoods", "reliability")
        record |= {name: table.attrs.get(name) for name in names}
    elif part == "linearized":
        record["linearized_at"] = table.attrs["linearized_at"]
    return record


def judged(
    records: Sequence[Record],
    accuracy_in: Callable[[int], pd.Series],
    parts: Mapping[str, Sequence[str]] = PARTS,
) -> pd.DataFrame:
    """One row a criterion: r and regret over the episodes, error bar and spread, seconds, R-hat."""
    rows = []
    for part in dict.fromkeys(one["part"] for one in records):
        own = [one for one in records if one["part"] == part]
        accuracies = [accuracy_in(one["episode"]).to_numpy() for one in own]
        for name in parts.get(part.split(" at ")[0], [part]):
            values = [signed(name, one["columns"][name]) for one in own]
            both = list(zip(values, accuracies, strict=True))
            r = [correlation(value, accuracy) for value, accuracy in both]
            regret = [accuracy.max() - accuracy[np.argmax(value)] for value, accuracy in both]
            errors = [pd.Series(one["columns"][f"{name}_error"]).mean() for one in own]
            shares = [
                error / value.std()
                for error, value in zip(errors, values, strict=True)
                if value.std() > 0
            ]
            r_hat = [max(one["columns"]["r_hat"]) for one in own if "r_hat" in one["columns"]]
            rows.append(
                {
                    "criterion": name + part.removeprefix(part.split(" at ")[0]),
                    "episodes": len(own),
                    "r": f"{np.mean(r):+.2f} ± {_sem(r):.2f}",
                    "least r": f"{min(r):+.2f}",
                    "regret, %": f"{100 * np.mean(regret):.2f} ± {100 * _sem(regret):.2f}",
                    "error/spread": f"{np.mean(shares):.2f}",
                    "R-hat": f"{max(r_hat):.2f}" if r_hat else "",
                    "seconds": f"{np.mean([one['seconds'] for one in own]):.1f}",
                    "passes": f"{np.mean([one['passes'][name] for one in own]):.0f}",
                }
            )
    return pd.DataFrame(rows).set_index("criterion")


def agreed(records: Sequence[Record]) -> list[Record]:
    """The consensus of the episodes whose parts are all there, as a part of its own."""
    made = []
    for number in dict.fromkeys(one["episode"] for one in records):
        own = {one["part"]: one for one in records if one["episode"] == number}
        for name, parts in {
            "consensus of one pass": ["features"],
            "consensus without chains": ["features", "linearized"],
            "consensus": ["features", "linearized", "sampled"],
        }.items():
            if not set(parts) <= set(own):
                continue
            columns = {k: v for part in parts for k, v in own[part]["columns"].items()}
            known = tuple(one for part in parts for one in PARTS[part])
            value, error = consensus(pd.DataFrame(columns), known, fresh_head=True)
            made.append(
                {
                    "episode": number,
                    "part": name,
                    "seconds": sum(own[part]["seconds"] for part in parts),
                    "passes": {name: sum(max(own[p]["passes"].values()) for p in parts)},
                    "columns": {name: value.tolist(), f"{name}_error": error.tolist()},
                }
            )
    return made


def both_free_energies(
    records: Sequence[Record], key: Callable[[Record], Hashable]
) -> list[tuple[Tensor, Tensor]]:
    """The sampled and the linearised −log Z of all candidates, of each problem that has both."""
    sampled, linearized = (
        {key(one): torch.tensor(one["columns"][name]) for one in records if one["part"] == part}
        for part, name in (("sampled", "free_energy"), ("linearized", "linearized_free_energy"))
    )
    return [(sampled[one], value) for one, value in linearized.items() if one in sampled]


def two_free_energies(records: Sequence[Record]) -> str:
    """How the linearised free energies are to the sampled ones, where an episode has both."""
    both = both_free_energies(records, lambda one: one["episode"])
    if not both:
        return ""
    r = [correlation(linearized.numpy(), sampled.numpy()) for sampled, linearized in both]
    higher = [float((linearized - sampled).mean()) for sampled, linearized in both]
    return (
        f"linearised free energies beside sampled ones: r {np.mean(r):+.2f}, {min(higher):.1f} to "
        f"{max(higher):.1f} nats higher in the mean of an episode"
    )


def chosen_among(records: Sequence[Record]) -> list[Record]:
    """Choose among the γ that an episode has been given, by evidence and by the rule of "auto".

    That is the γ of the largest mean evidence, or the first narrower one whose reliability over all
    networks is `TELLING`, or else the most reliable of those. An episode that has not been given
    all γ, and whose rule would ask for more, is left out. Seconds and passes are of that γ alone.
    """
    given: dict[str, dict[int, dict[float, Record]]] = {}
    for one in records:
        at = f"sampled at {one.get('localization', 0):g}"
        if one["part"].startswith(at):  # with what is alike for all γ: the head, the samples
            own = given.setdefault(one["part"].removeprefix(at), {})
            own.setdefault(one["episode"], {})[one["localization"]] = one
    return [
        {**one, "part": f"sampled at {name}{alike}"}
        for alike, episodes in given.items()
        for name, one in _chosen(episodes)
    ]


def _chosen(episodes: dict[int, dict[float, Record]]) -> list[tuple[str, Record]]:
    grid = sorted({gamma for own in episodes.values() for gamma in own})
    among = ", ".join(f"{gamma:g}" for gamma in grid)
    made = []
    for own in episodes.values() if len(grid) > 1 else []:
        evident = min(own, key=lambda gamma: np.mean(own[gamma]["columns"]["free_energy"]))
        told = {gamma: _reliability(own[gamma]) for gamma in sorted(own) if gamma >= evident}
        first = next((gamma for gamma in told if told[gamma] >= TELLING), None)
        if first is None and len(own) < len(grid):
            continue
        best = max(told, key=lambda gamma: told[gamma]) if first is None else first
        made += [
            (f"γ by {name} of {among}", own[gamma])
            for name, gamma in (("evidence", evident), ("rule", best))
        ]
    return made


def _reliability(record: Record) -> float:
    columns = record["columns"]
    return reliability(columns["free_energy"], columns["free_energy_error"])


def correlation(value: np.ndarray[Any, Any], accuracy: np.ndarray[Any, Any]) -> float:
    """Pearson's r, 0 of a criterion that tells no two networks apart."""
    return float(np.corrcoef(value, accuracy)[0, 1]) if value.std() > 0 else 0.0


def signed(name: str, column: Sequence[float]) -> np.ndarray[Any, Any]:
    """A criterion's values with the sign at which larger is better."""
    return np.array(column) * (1.0 if name in HIGHER_IS_BETTER else -1.0)


def _sem(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--episodes", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--fixed", nargs="+", type=float, help="γ of sampled, none of them chosen")
    parser.add_argument("--head", type=float, help="precision of the head's prior")
    parser.add_argument("--samples", type=int, help="steps of a chain after its warm-up")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what the file has; run nothing")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, for a test")
    options = parser.parse_args(argv)
    length = {"num_rungs": 4, "num_samples": 8, "warmup_steps": 5} if options.quick else {}
    if options.samples is not None:
        length["num_samples"] = options.samples
    done = {(one["episode"], one["part"]) for one in read(options.output)}
    wanted = [
        (number, part, gamma)
        for number in options.episodes
        for part in options.parts
        for gamma in (options.fixed or [None] if part == "sampled" else [None])
    ]
    for number, part, gamma in [] if options.table else wanted:
        if (number, called(part, gamma, options.head, length.get("num_samples"))) in done:
            continue
        made = run(number, part, gamma, options.head, length)
        keep([made], options.output)
        say(f"episode {number}, {made['part']}: {made['seconds']} s")
    records = sorted(read(options.output), key=lambda one: str(one["part"]))
    found = truth(2 if options.quick else 100)
    accuracy = found["accuracy"]
    print(
        f"accuracy of 24 networks in other episodes {100 * accuracy.mean():.1f} %, the best "
        f"{100 * accuracy.max():.1f}, standard deviation {100 * accuracy.std():.2f}, each known to "
        f"{100 * found['error'].mean():.2f}; at random a choice costs "
        f"{100 * (accuracy.max() - accuracy.mean()):.2f}"
    )
    chosen = {
        one["episode"]: (round(one["localization"], 1), round(one["head_precision"], 4))
        for one in records
        if one["part"] == "sampled"
    }
    if chosen:
        print(f"γ and the head's precision that were chosen, episode by episode: {chosen}")
    once = [one["one_finetune"] for one in records if "one_finetune" in one]
    if once:
        print(f"fine-tuning one network once, beside linearising all: {np.mean(once):.2f} s")
    among = chosen_among(records)
    for name in dict.fromkeys(one["part"] for one in among):
        taken = {one["episode"]: one["localization"] for one in among if one["part"] == name}
        print(f"γ of {name}: {taken}")
    print(judged([*records, *agreed(records), *among], lambda _: accuracy).to_string())
    print(two_free_energies(records))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
