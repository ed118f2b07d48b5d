"""Does pretraining free energy choose the checkpoint that transfers best? On CIFAR-FS.

    python benchmarks/cifar_fs.py [--data ../shared/data/cifar_fs] [--full] [--output FILE]

Checkpoints of one-factor sweeps of learning rate, batch size and momentum, several seeds each, all
at one training loss; WBIC from mixed chains beside its held-out form and the baselines; downstream
accuracy on four tasks that move away from the pretraining distribution step by step. Munn & Wei
(2025, arXiv:2410.05612) report r = -0.82 and -0.89 on the last two. The default took
59 minutes on two busy cores; --full is the paper's network and sweep, for a GPU and a day or more,
and has been run at the size of --smoke only, which takes either through in a minute on random
images.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shlex
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from cifar.agreement import paired_errors
from cifar.data import Images, asked_images
from cifar.experiment import OUTCOMES, run_configuration
from cifar.report import describe
from cifar.settings import FULL, SMALL, Settings, smoke
from printed import STARTED, say


def run(settings: Settings, images: Images, seed: int, folder: Path) -> pd.DataFrame:
    """All configurations, in processes of one thread each; rows are saved as they come."""
    job = partial(
        run_configuration,
        settings=settings,
        images=images,
        seed=seed,
        folder=folder,
        say=partial(say, started=STARTED),
    )
    rows: list[pd.DataFrame] = []

    def keep(part: pd.DataFrame) -> None:
        rows.append(part)
        pd.concat(rows).to_csv(folder / "checkpoints.csv")

    if settings.workers == 1:
        for configuration in settings.configurations:
            keep(job(configuration))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            settings.workers, context, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            for future in as_completed([pool.submit(job, c) for c in settings.configurations]):
                keep(future.result())
    return pd.concat(rows)


def header(settings: Settings, images: Images, table: pd.DataFrame, command: str) -> list[str]:
    """What was run, in words and numbers."""
    module = settings.build(images.num_classes)
    n, wide, tight = len(images.training[0]), settings.wide, settings.tight
    reached = int(table["training_loss"].notna().sum())
    lines = [
        "Pretraining free energy against transfer on CIFAR-FS",
        f"command: {command}",
        f"run time {(time.time() - STARTED) / 60:.0f} min on {settings.workers} x 1 thread"
        if settings.workers > 1
        else f"run time {(time.time() - STARTED) / 60:.0f} min on {images.training[0].device}",
        f"network: {type(module).__name__}, {sum(p.numel() for p in module.parameters())} weights; "
        f"{images.num_classes} meta-train classes, n = {n} pretraining images",
        f"sweep: {len(settings.configurations)} configurations x {settings.num_seeds} seeds, "
        f"{reached} of {len(table)} networks reached training loss {settings.target_loss:g}",
        "left out for not reaching it: "
        + (", ".join(table.index[table["training_loss"].isna()]) or "none"),
        f"fine-tuning: {settings.num_steps} steps, rates {settings.head_rate:g} (fresh head) and "
        f"{settings.backbone_rate:g} (backbone); 5-shot on the pretraining classes "
        f"{settings.same_episodes} episodes, 5-way 5-shot {settings.ways_episodes}, full "
        f"fine-tuning {settings.full_shots} images a class, batches of {settings.full_batch}, "
        f"{settings.repeats} repeats; pixel noise {settings.noise:g} sd",
    ]
    epoch = table["epoch_seconds"].median()
    for suffix, chains in (("", wide), ("_local", tight)):
        steps = chains.warmup_steps + chains.num_samples * chains.thinning
        passes = chains.num_chains * steps * (chains.batch_size or n) / n
        seconds = table[f"seconds{suffix}"].median()
        data = "all the data" if chains.batch_size is None else f"{chains.batch_size} images"
        lines.append(
            f"chains: localisation {chains.localization:g}, beta = 1/log n, BAOAB, "
            f"{chains.num_chains} chains of {chains.warmup_steps} + {chains.num_samples} x "
            f"{chains.thinning} steps, {data} a step: {passes:.0f} passes over the data an "
            f"estimate, {seconds / epoch:.0f} times the wall time of one training epoch "
            f"({epoch:.2f} s), tuning and compiling included"
        )
    epochs = table["epochs"].dropna()
    lines.append(f"pretraining took {epochs.min():.0f} to {epochs.max():.0f} epochs a network")
    return [*lines, ""]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar_fs"))
    parser.add_argument("--full", action="store_true", help="ResNet-18, all data: for a GPU")
    parser.add_argument("--smoke", action="store_true", help="tiny, on random images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the report here too")
    parser.add_argument("--work", type=Path, help="folder for rows and weights as they come")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    settings = FULL if options.full else SMALL
    if options.smoke:
        settings = smoke(settings)
    images = asked_images(options.data, settings.split, options.seed, random=options.smoke)
    if images is None:
        return 0
    folder = options.work or Path(tempfile.mkdtemp(prefix="cifar_fs_"))
    folder.mkdir(parents=True, exist_ok=True)
    say(f"{len(settings.configurations)} configurations; rows as they come: {folder}")
    table = run(settings, images.to(torch.device(options.device)), options.seed, folder)
    for outcome in OUTCOMES:
        table[f"{outcome}_error"] = paired_errors(table, outcome, folder)
    table.to_csv(folder / "checkpoints.csv")
    command = shlex.join(["python", "benchmarks/cifar_fs.py", *argv])
    reached = table[table["training_loss"].notna()]
    gammas = (settings.wide.localization, settings.tight.localization)
    lines = [*header(settings, images, table, command), *describe(reached, OUTCOMES, gammas)]
    report = "\n".join(line.rstrip() for text in lines for line in text.split("\n")) + "\n"
    print(report)
    if options.output:
        options.output.write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
