"""What it costs to rank the networks of `cifar_fs.py` by free energy, if it is done shortly.

    OMP_NUM_THREADS=1 python benchmarks/cifar_ranking.py [--data ../shared/data/cifar_fs]
        [--defaults 2] [--work FOLDER] [--output benchmarks/results/cifar_ranking.txt]

The same networks at the same localisation, ranked twice by `fe.rank_checkpoints`: as `cifar_fs.py`
does it, and by a run of 60 + 60 steps of one chain, at another seed. The aims are a tenth of the
2,000 passes and of the 922 epochs' time that the first is recorded with, and a Spearman correlation
of the two orders of 0.95.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from cifar.data import Images, asked_images
from cifar.pretraining import Pretrained, pretrain
from cifar.settings import SMALL, Settings, smoke
from printed import add_output, met_or_missed, say, show, torch_and_load
from processor_time import processor_seconds
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.step import compile as compiling
from ppl_fe.networks.flat import FlatNetwork

RECORDED_PASSES, RECORDED_EPOCHS = 2000, 922  # of an estimate, in results/cifar_fs.txt
SHARE, LEAST_SPEARMAN = 0.1, 0.95
# The steps that warm-up chooses by itself lie between 1.3e-4 and 1.0e-3, their median at 4.3e-4; at
# a step that is given it measures no curvature on the way, which in so short a run would be most of
# the cost. Starts twice too far out take some 60 steps to forget.
SHORT: dict[str, Any] = {
    "num_chains": 1,
    "step_size": 4e-4,
    "warmup_steps": 60,
    "num_samples": 60,
    "thinning": 1,
}
AT_ONCE = 8  # networks a call: the activations of all of them on all the data are out of any cache


class Compiling:
    """Processor seconds that went into compiling since `clear`."""

    seconds = 0.0

    @classmethod
    @contextmanager
    def timed(cls) -> Iterator[None]:
        inner = compiling.compile_graph

        def compile_graph(*args: Any, **options: Any) -> Any:
            began = processor_seconds()
            try:
                return inner(*args, **options)
            finally:
                cls.seconds += processor_seconds() - began

        cls.seconds, compiling.compile_graph = 0.0, compile_graph
        try:
            yield
        finally:
            compiling.compile_graph = inner


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What was made before, if the file is there; otherwise make it and keep it."""
    if not path.exists():
        torch.save(make(), path)
    return torch.load(path, weights_only=False)


def pretrained(settings: Settings, images: Images, seed: int, folder: Path) -> pd.DataFrame:
    """A row a network: configuration, seconds an epoch, and its weights; without those too late."""
    build = partial(settings.build, images.num_classes)
    network = FlatNetwork(build())
    rows = []
    for configuration in settings.configurations:

        def train(configuration: Any = configuration) -> tuple[Pretrained, float]:
            began = processor_seconds()
            made = pretrain(
                build, network, images.training, configuration, settings.num_seeds,
                target_loss=settings.target_loss, max_epochs=settings.max_epochs, seed=seed,
            )  # fmt: skip
            epochs = made.epochs.nan_to_num(settings.max_epochs).sum().item()
            return made, (processor_seconds() - began) / epochs

        made, epoch = kept(folder / f"{configuration}.pt".replace(" ", "_"), train)
        rows += [
            (f"{configuration} seed={k}", str(configuration), epoch, made.vectors[k])
            for k in range(settings.num_seeds)
            if made.losses[k].isfinite()
        ]
    columns = ["checkpoint", "configuration", "epoch", "vector"]
    return pd.DataFrame(rows, columns=columns).set_index("checkpoint")


def states_of(networks: pd.DataFrame, network: FlatNetwork) -> dict[str, dict[str, Tensor]]:
    """Checkpoint -> its weights by name."""
    return {str(name): network.unflatten(vector) for name, vector in networks["vector"].items()}


def ranked(group: pd.DataFrame, settings: Settings, images: Images, **options: Any) -> pd.DataFrame:
    """The ranking of some networks, with the seconds of each: processor's, wall's, compiling's."""
    network = FlatNetwork(settings.build(images.num_classes))
    states = states_of(group, network)
    wall, began = time.perf_counter(), processor_seconds()
    with Compiling.timed():
        found = fe.rank_checkpoints(
            states, network.module, images.training, localization=settings.wide.localization,
            progress_bar=False, **options,
        )  # fmt: skip
    table = found[["wbic", "wbic_mcse", "r_hat", "ess", "passes", "error"]].copy()
    table["seconds"] = (processor_seconds() - began) / len(states)
    table["wall"] = (time.perf_counter() - wall) / len(states)
    table["compiling"] = Compiling.seconds / len(states)
    return pd.DataFrame(table)


def estimates(
    groups: Mapping[str, pd.DataFrame],
    settings: Settings,
    images: Images,
    folder: Path,
    **options: Any,
) -> pd.DataFrame:
    """The estimates of groups of networks, a call each; those that are in the folder are read."""
    parts = []
    for name, group in groups.items():
        rank = partial(ranked, group, settings, images, **options)
        parts.append(kept(folder / f"{name}.pt".replace(" ", "_"), rank))
        say(f"{name}: {parts[-1]['seconds'].iloc[0]:.1f} s a network")
    whole: pd.DataFrame = pd.concat(parts)
    return whole


def long_way(
    networks: pd.DataFrame, settings: Settings, images: Images, seed: int, folder: Path
) -> pd.DataFrame:
    """The estimates of `cifar_fs.py`, a configuration at a time."""
    chains, by_configuration = settings.wide, networks.groupby("configuration", sort=False)
    return estimates(
        {f"{name}_long": group for name, group in by_configuration},
        settings, images, folder, num_chains=chains.num_chains, num_samples=chains.num_samples,
        thinning=chains.thinning, warmup_steps=chains.warmup_steps, batch_size=chains.batch_size,
        seed=seed,
    )  # fmt: skip


def short_way(
    networks: pd.DataFrame, settings: Settings, images: Images, seed: int, folder: Path
) -> pd.DataFrame:
    """The estimates of the short way, a few networks at a time."""
    starts = range(0, len(networks), AT_ONCE)
    groups = {f"short_{first}": networks[first : first + AT_ONCE] for first in starts}
    return estimates(groups, settings, images, folder, batch_size=None, seed=seed, **SHORT)


def default_way(
    networks: pd.DataFrame, settings: Settings, images: Images, number: int, folder: Path
) -> pd.DataFrame:
    """So many networks by the call without any setting of the sampler."""
    few = networks.groupby("configuration", sort=False).head(1).head(number)
    return estimates({"defaults": few}, settings, images, folder)


def listed(long: pd.DataFrame, short: pd.DataFrame) -> str:
    """A row a network, best first by the long way."""
    parts = []
    for way, table in (("long", long), ("short", short)):
        place = table["wbic"].rank().rename("place")
        own = table[["wbic", "wbic_mcse", "passes", "seconds"]].join(place)
        parts.append(own.rename(columns={"wbic_mcse": "mcse"}).add_suffix(f" {way}"))
    both = parts[0].join(parts[1]).sort_values("wbic long")
    return both.to_string(float_format=lambda value: f"{value:.4g}")


def costs(name: str, table: pd.DataFrame, epoch: float) -> str:
    """What an estimate took in one of the ways."""
    each = table[["passes", "seconds", "compiling", "wall"]].mean()
    return (
        f"{name:8}  {each['passes']:6.0f} passes an estimate, {each['seconds']:6.2f} s of the "
        f"processor = {each['seconds'] / epoch:.0f} epochs' time, of them compiling "
        f"{each['compiling']:.2f} s; {each['wall']:.1f} s of wall time"
    )


def verdicts(long: pd.DataFrame, short: pd.DataFrame, epoch: float) -> list[str]:
    """Each aim beside what was reached."""
    spearman = long["wbic"].corr(short["wbic"], method="spearman")
    lines = []
    for what, recorded, column, unit in (
        ("passes", RECORDED_PASSES, "passes", 1.0),
        ("epochs", RECORDED_EPOCHS, "seconds", epoch),
    ):
        found, aim = short[column].mean() / unit, SHARE * recorded
        lines.append(
            f"{what:8}  {found:6.0f}, the long way {long[column].mean() / unit:.0f} here and "
            f"{recorded} as recorded; aim {aim:.0f}: {met_or_missed(found <= aim)}"
        )
    return [
        *lines,
        f"Spearman  {spearman:6.3f} of the two orders of {len(long)} networks; aim "
        f"{LEAST_SPEARMAN}: {met_or_missed(spearman >= LEAST_SPEARMAN)}",
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar_fs"))
    parser.add_argument("--configurations", type=int, help="only the first so many")
    parser.add_argument("--smoke", action="store_true", help="tiny, on random images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for what is made")
    parser.add_argument(
        "--defaults",
        type=int,
        default=0,
        help="networks to rank at the defaults, too: minutes each",
    )
    add_output(parser)
    given = parser.parse_args(argv)
    settings = smoke(SMALL) if given.smoke else SMALL
    settings = replace(settings, configurations=settings.configurations[: given.configurations])
    images = asked_images(given.data, settings.split, given.seed, random=given.smoke)
    if images is None:
        return 0
    load = os.getloadavg()[0]
    folder = given.work or Path(tempfile.mkdtemp(prefix="cifar_ranking_"))
    folder.mkdir(parents=True, exist_ok=True)
    say(f"what is made is kept in {folder}, and read there by another run")
    networks = pretrained(settings, images, given.seed, folder)
    long = long_way(networks, settings, images, given.seed, folder)
    short = short_way(networks, settings, images, given.seed + 1, folder)
    epoch = float(networks.groupby("configuration")["epoch"].first().median())
    wide = settings.wide
    asked = {name: getattr(wide, name) for name in ("num_chains", "warmup_steps", "num_samples")}
    ways = [
        f"{name}: " + ", ".join(f"{option}={value}" for option, value in own.items())
        for name, own in (("long", {**asked, "thinning": wide.thinning}), ("short", SHORT))
    ]
    lines = [
        "The networks of cifar_fs.py ranked by free energy, in a long way and in a short one",
        f"command: {shlex.join(['python', 'benchmarks/cifar_ranking.py', *argv])}",
        torch_and_load(load),
        f"{len(networks)} networks at training loss {settings.target_loss:g}, "
        f"n = {len(images.training[0])}; localisation {wide.localization:g}, BAOAB, all the data a "
        "step",
        f"{ways[0]}; a configuration at a time",
        f"{ways[1]}; {AT_ONCE} networks at a time",
        "",
        listed(long, short),
        "",
        f"an epoch of pretraining, median of the configurations: {epoch:.3f} s of the processor",
        costs("long", long, epoch),
        costs("short", short, epoch),
        "",
        *verdicts(long, short, epoch),
    ]
    if given.defaults:
        few = default_way(networks, settings, images, given.defaults, folder)
        lines.insert(-4, costs("defaults", few, epoch) + f", of {len(few)} networks")
    show("\n".join(lines), given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
