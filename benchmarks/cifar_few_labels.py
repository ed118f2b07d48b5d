"""Which of the networks of `cifar_fs.py` transfers best, told from 25 labels of five new classes?

    OMP_NUM_THREADS=1 python benchmarks/cifar_few_labels.py [--data ../shared/data/cifar_fs]
        [--tasks 0 1 ...] [--parts features ...] [--fixed 30 --head 0.1 --samples 500]
        [--work FOLDER] [--table]

A task is five of the twenty meta-test classes and five images of each; a criterion of
`fe.choose_checkpoint` is held against each network's accuracy after few-shot fine-tuning in 20
other episodes of the same classes, whose images are none of these. Beside them stand the criteria
that ask for no labels of the task, each with the sign that was claimed for it: low is good. WBIC is
that of `cifar_ranking.py`'s short way. Columns are those of `few_labels.py`: Pearson's r over the
networks, such that +1 is a criterion that tells, and the regret. The networks, and what needs no
labels, are kept in the folder of --work, the rest one part of a task a line of the results.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from cifar.data import Data, Images, asked_images
from cifar.finetuning import HEAD, draw_episodes, fine_tune
from cifar.settings import SMALL, Settings, smoke
from cifar_ranking import SHORT, pretrained, states_of
from few_labels import PARTS, SHOTS, agreed, called, computed, judged
from kept_lines import Record, keep, read
from printed import say

import ppl_fe as fe
from ppl_fe.networks.flat import FlatNetwork

WAYS, EPISODES = 5, 20
WITHOUT_LABELS = ["wbic", "held_out", "geometric_complexity", "neural_collapse", "perturbed_loss"]
RESULTS = Path(__file__).parent / "results" / "cifar_few_labels.jsonl"


def task(images: Images, number: int) -> tuple[Data, Data]:
    """The labelled images of a task's classes, and all others of these classes."""
    inputs, labels = images.downstream
    generator = torch.Generator().manual_seed(number)
    classes = torch.randperm(int(labels.max()) + 1, generator=generator)[:WAYS].tolist()
    shown, others = [], []
    for place, one in enumerate(classes):
        rows = (labels == one).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        own = torch.full_like(labels[rows], place)
        shown.append((inputs[rows[:SHOTS]], own[:SHOTS]))
        others.append((inputs[rows[SHOTS:]], own[SHOTS:]))
    labelled, rest = (
        (torch.cat([x for x, _ in part]), torch.cat([y for _, y in part]))
        for part in (shown, others)
    )
    return labelled, rest


def truth(
    networks: pd.DataFrame, images: Images, settings: Settings, number: int, num_episodes: int
) -> dict[str, list[float]]:
    """Each network's accuracy after fine-tuning in other episodes of a task's classes."""
    network = FlatNetwork(settings.build(images.num_classes))
    episodes = draw_episodes(
        task(images, number)[1],
        ways=WAYS,
        shots=SHOTS,
        tests=settings.tests,
        num_episodes=num_episodes,
        seed=number,
    )
    found = fine_tune(
        network,
        torch.stack(networks["vector"].tolist()),
        episodes,
        num_steps=settings.num_steps,
        head_rate=settings.head_rate,
        backbone_rate=settings.backbone_rate,
        seed=number,
    )
    return {"accuracy": [round(one, 4) for one in found.mean.tolist()]}


def without_labels(networks: pd.DataFrame, images: Images, settings: Settings) -> Record:
    """What the pretraining data alone say of each network, and its cost in seconds and passes."""
    network = FlatNetwork(settings.build(images.num_classes))
    states = states_of(networks, network)
    began = time.process_time()
    table = fe.rank_checkpoints(
        states, network.module, images.training, held_out=images.held_out, baselines=True,
        localization=settings.wide.localization, batch_size=None, seed=1, progress_bar=False,
        **SHORT,
    ).loc[list(states)]  # fmt: skip
    columns = {name: table[name].astype(float).round(4).tolist() for name in WITHOUT_LABELS}
    nothing = [float("nan")] * len(table)
    for name in WITHOUT_LABELS:
        errors = f"{name}_mcse"
        known = table[errors].astype(float).round(4).tolist() if errors in table else nothing
        columns[f"{name}_error"] = known
    return {
        "part": "without labels",
        "seconds": round(time.process_time() - began, 1),
        # Of the two that the chains give; those of the baselines are not counted.
        "passes": {
            name: float(table["passes"].mean()) if name in ("wbic", "held_out") else float("nan")
            for name in WITHOUT_LABELS
        },
        "columns": columns,
    }


def report(records: Sequence[Record], alone: Record | None) -> str:
    """How far the networks lie apart in each task, and a row a criterion."""
    known = {one["episode"]: one for one in records if one["part"] == "truth"}
    accuracies = {k: pd.Series(one["columns"]["accuracy"]) for k, one in known.items()}
    shown = [one for one in records if one["part"] != "truth" and one["episode"] in accuracies]
    parts = {**PARTS, "without labels": WITHOUT_LABELS}
    if alone is not None:
        shown += [{**alone, "episode": number} for number in accuracies]
    spread = pd.DataFrame(accuracies)
    mean, best, random = spread.mean().mean(), spread.max().mean(), spread.std().mean()
    lines = [
        f"accuracy of {len(spread)} networks in other episodes of {len(accuracies)} tasks "
        f"{100 * mean:.1f} %, the best {100 * best:.1f}, standard deviation {100 * random:.2f}; "
        f"at random a choice costs {100 * (best - mean):.2f}",
    ]
    taken = {
        one["episode"]: (round(one["localization"], 1), round(one["head_precision"], 4))
        for one in shown
        if one["part"].startswith("sampled")
    }
    lines.append(f"γ and the head's precision, task by task: {taken}")
    table = judged([*shown, *agreed(shown)], lambda number: accuracies[number], parts)
    return "\n".join([*lines, table.to_string()])


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar_fs"))
    parser.add_argument("--tasks", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--fixed", type=float, help="γ of sampled; chosen by default")
    parser.add_argument("--head", type=float, help="precision of the head's prior")
    parser.add_argument("--samples", type=int, help="steps of a chain after its warm-up")
    parser.add_argument("--work", type=Path, help="folder for the networks")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what the file has; run nothing")
    parser.add_argument("--smoke", action="store_true", help="tiny, on random images")
    given = parser.parse_args(argv)
    if not given.table:
        settings = SMALL
        if given.smoke:
            settings = smoke(SMALL)
            settings = replace(settings, split=replace(settings.split, downstream=3 * SHOTS))
        images = asked_images(given.data, settings.split, 0, random=given.smoke)
        if images is None:
            return 0
        _run_all(given, settings, images)
    records = read(given.output)
    alone = next((one for one in records if one["part"] == "without labels"), None)
    print(report([one for one in records if one is not alone], alone))
    return 0


def _run_all(given: argparse.Namespace, settings: Settings, images: Images) -> None:
    folder = given.work or Path(tempfile.mkdtemp(prefix="cifar_few_labels_"))
    folder.mkdir(parents=True, exist_ok=True)
    networks = pretrained(settings, images, 0, folder)
    states = states_of(networks, FlatNetwork(settings.build(images.num_classes)))
    how: dict[str, Any] = {"num_samples": given.samples} if given.samples else {}
    if given.smoke:
        how = {
            "num_rungs": 3,
            "num_samples": 4,
            "warmup_steps": 3,
            "localization": 100.0,
            "compile": "eager",
        }
    number_of = 2 if given.smoke else EPISODES
    jobs: list[tuple[int | None, str]] = [(None, "without labels")]
    jobs += [(number, part) for part in ["truth", *given.parts] for number in given.tasks]
    for number, part in jobs:
        name = called(part, given.fixed, given.head, given.samples)
        done = {(one.get("episode"), one["part"]) for one in read(given.output)}
        if (number, name) in done:
            continue
        if number is None:
            made = without_labels(networks, images, settings)
        elif part == "truth":
            made = {"columns": truth(networks, images, settings, number, number_of)}
        else:
            place = {"localization": given.fixed or "auto", "head_precision": given.head or "auto"}
            sampled = {**place, **how} if part == "sampled" else {}
            labelled, _ = task(images, number)
            module = settings.build(WAYS)
            made = computed(part, states, module, labelled, head=HEAD, seed=number, **sampled)
        made |= {"part": name} | ({} if number is None else {"episode": number})
        keep([made], given.output)
        say(f"{name}{'' if number is None else f', task {number}'}: {made.get('seconds', 0)} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
