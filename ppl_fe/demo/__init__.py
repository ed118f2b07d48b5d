"""`ppl-fe demo`: pretrain, rank, fine-tune, see whether the ranking predicted it, and choose.

The digits 0-4 serve as pretraining data. Two downstream tasks follow: the same digits under pixel
noise, where the theory's density ratio stays bounded, and the new digits 5-9, where it does not.
For those a checkpoint is chosen by 25 labels, too.

    digits.py           the data
    pretraining.py      24 checkpoints of one training loss
    transfer.py         few-shot fine-tuning of each
    labelled_choice.py  the choice by 25 labels, and what it was worth
    report.py           table, verdicts, picture
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from ppl_fe.demo.digits import embedded_digits
from ppl_fe.demo.labelled_choice import CRITERION, NEW, choose, worth
from ppl_fe.demo.pretraining import digits_network, pretrain
from ppl_fe.demo.report import Report, write_report
from ppl_fe.demo.transfer import transfer
from ppl_fe.free_energy.correlation import correlations, verdict
from ppl_fe.free_energy.ranking import rank_checkpoints
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.tasks.n_jobs import opened_workers

CRITERIA = ["wbic", "held_out", "validation_loss", "geometric_complexity", "neural_collapse"]
# At γ = 30 these chains mix in the time; all the data in every step, since at n = 400 gradient
# noise would cost more relaxation than it saves work.
LOCALIZATION, NUM_CHAINS, NUM_SAMPLES, THINNING, WARMUP = 30.0, 4, 550, 4, 300
NUM_JOBS = -1  # a process a core: the checkpoints are two lots, and so are the tasks


def run_demo(output: str | Path, *, seed: int = 0, progress_bar: bool = True) -> Report:
    """Run the whole demonstration and write its table, draws and picture into a new folder.

    Args:
        output: the folder; an earlier demonstration in it is replaced, anything else refused.
        seed: of the data split, the networks, the chains and the episodes.
        progress_bar: show the chains' progress.

    Returns:
        The report, which prints.

    Raises:
        FileExistsError: `output` exists and holds something else.
    """
    started = time.perf_counter()
    # One thread: these matrices are small, and on a machine that does other work too, two threads
    # that wait for each other take ten times as long as one.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report = _run(Path(output), seed, progress_bar, started)
    finally:
        torch.set_num_threads(num_threads)
    return report


def _run(output: Path, seed: int, progress_bar: bool, started: float) -> Report:
    say = print if progress_bar else _quiet
    with write_report(output) as folder:
        digits = embedded_digits(seed=seed)
        say("pretraining small networks on the digits 0-4 ...")
        trained = pretrain(digits.training, seeds=(2 * seed, 2 * seed + 1))
        say(f"ranking {len(trained)} checkpoints by free energy ...")
        table = rank_checkpoints(
            {checkpoint.name: checkpoint.state_dict for checkpoint in trained},
            digits_network(),
            digits.training,
            held_out=digits.validation,
            baselines=True,
            localization=LOCALIZATION,
            batch_size=None,
            num_chains=NUM_CHAINS,
            num_samples=NUM_SAMPLES,
            thinning=THINNING,
            warmup_steps=WARMUP,
            seed=seed,
            n_jobs=NUM_JOBS,
            save_to=folder / "draws",
            progress_bar=progress_bar,
        )
        by_name = {checkpoint.name: checkpoint for checkpoint in trained}
        table["learning_rate"] = [by_name[name].configuration.learning_rate for name in table.index]
        states = {name: by_name[name].state_dict for name in table.index}
        table[CRITERION] = choose(states, digits.tasks[NEW], seed=seed + 1)
        found: dict[str, pd.DataFrame] = {}
        verdicts: dict[str, str] = {}
        network = FlatNetwork(digits_network())
        vectors = torch.stack([network.with_state(state).anchor for state in states.values()])
        say(f"fine-tuning each on few examples: {' and '.join(digits.tasks)} ...")
        with opened_workers(None, NUM_JOBS) as workers:
            assert workers is not None
            done = workers.run(
                partial(transfer, seed=seed),
                digits.tasks,
                lambda task: (network, vectors, digits.tasks[task]),
                progress=progress_bar,
            )
            outcomes = {task: outcome for task, outcome, *_ in done}
        for task in digits.tasks:
            outcome = outcomes[task]
            if isinstance(outcome, Exception):
                raise outcome
            table[task] = outcome.mean.numpy()
            table[f"{task}_error"] = outcome.paired_error.numpy()
            criteria = [*CRITERIA, CRITERION] if task == NEW else CRITERIA
            found[task] = correlations(table, criteria, task, seed=seed)
            verdicts[task] = verdict(found[task], outcome=f"accuracy on {task}")
        choice = worth(table, NEW, found[NEW]["pearson"].to_dict())
        report = Report(table, found, verdicts, choice, time.perf_counter() - started, output)
        report.save(folder)
    return report


def _quiet(_: str) -> None:
    """Say nothing."""
