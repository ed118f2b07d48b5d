"""Which entries are worth updating? Every rule at one budget, on images of CIFAR-FS.

    python benchmarks/vision.py [--full] [--seeds 3] [--output benchmarks/results/vision.jsonl]

A network is pretrained on the 64 meta-train classes and fine-tuned on the 20 others: in full, by
LoRA, and on the p = 0.5 % of its entries that each rule of `select_parameters` chooses. Budget,
search, seeds and results file are those of `glue.py`; a seed sets which images of the 20 classes
are trained on, the head, the order of the data, and the chains. The default takes a small network
(0.2 M weights) for two cores; --full is ResNet-18 with group norm, for a GPU. --quick takes the
whole path in seconds on random images.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from cifar.data import Images, Split, random_images, read_images
from cifar.networks import PatchNetwork, ResNet18
from glue.metrics import measure
from glue.options import add_options
from glue.results import settings_hash, tables
from glue.rules import HEAD, Budget, Problem
from glue.runs import go
from printed import say
from torch import Tensor, nn

import ppl_fe as fe

NUM_CLASSES = 20
TASK = "cifar_fs"
# Small convolutional networks bear, and need, larger rates than a transformer.
MASK_RATES, FULL_RATES = (1e-2, 3e-3, 3e-2), (1e-3, 3e-4, 3e-3)


@dataclass(frozen=True)
class Settings:
    """One form of the benchmark.

    Attributes:
        name: in the results file.
        build: classes -> network with a linear layer called `HEAD`.
        split: of the images; `held_out` ones stop the pretraining early.
        epochs, rate, batch_size: of pretraining, by AdamW; the state of lowest held-out loss.
        shots: images of each of the 20 classes to fine-tune on, 90/10 with validation; the other
            `split.downstream - shots` are the test.
        budget: of every rule.
    """

    name: str
    build: Callable[[int], nn.Module]
    split: Split
    epochs: int
    rate: float
    batch_size: int
    shots: int
    budget: Budget


SMALL = Settings(
    "small",
    partial(PatchNetwork, widths=(64, 128, 256)),
    Split(classes=64, training=300, held_out=20, fresh=1, downstream=150),
    epochs=15,
    rate=1e-3,
    batch_size=64,
    shots=50,
    budget=Budget(batch_size=32, mask_rates=MASK_RATES, full_rates=FULL_RATES),
)
FULL = Settings(
    "full",
    ResNet18,
    Split(classes=64, training=550, held_out=49, fresh=1, downstream=600),
    epochs=60,
    rate=1e-3,
    batch_size=128,
    shots=100,
    budget=Budget(
        selection_steps=2000,
        training_steps=2000,
        batch_size=64,
        mask_rates=MASK_RATES,
        full_rates=FULL_RATES,
    ),
)
QUICK = Settings(
    "quick",
    partial(PatchNetwork, widths=(4, 8, 8)),
    Split(classes=4, training=8, held_out=4, fresh=1, downstream=12),
    epochs=2,
    rate=1e-2,
    batch_size=8,
    shots=8,
    budget=Budget(sparsity=0.05, selection_steps=4, training_steps=4, batch_size=8),
)


def pretrained(settings: Settings, images: Images, folder: Path) -> nn.Module:
    """The network of the 64 classes, trained now or read from the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = settings.build(images.num_classes).to(images.training[0].device)
    network = fe.FlatNetwork(module)
    described = {k: str(v) for k, v in vars(settings).items() if k not in ("budget", "shots")}
    path = folder / f"pretrained-{settings_hash(described)}.pt"
    if not path.exists():
        tuned = fe.finetune(
            network,
            images.training,
            method="full",
            learning_rate=settings.rate,
            num_epochs=settings.epochs,
            batch_size=settings.batch_size,
            validation=images.held_out,
            patience=settings.epochs,
            progress_bar=False,
        )
        best = tuned.history.sort_values("validation_loss").iloc[0]
        say(
            f"pretrained {network.num_parameters} weights, {tuned.step} steps: held-out accuracy "
            f"{best['validation_accuracy']:.3f} on {images.num_classes} classes"
        )
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(tuned.weights, path)
    vector = torch.load(path, weights_only=True, map_location=network.device)
    module.load_state_dict(network.unflatten(vector))
    return module


def make_problem(
    settings: Settings, images: Images, module: nn.Module, task: str, seed: int
) -> Problem:
    """The 20 classes at one seed: a fresh head, and images chosen anew for training."""
    module = copy.deepcopy(module)
    old = module.get_submodule(HEAD)
    assert isinstance(old, nn.Linear)  # both architectures name theirs so
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(old.in_features, NUM_CLASSES)
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
    module.set_submodule(HEAD, head.to(old.weight.device))
    x, y = images.downstream
    training, validation, test = (
        (x[rows], y[rows]) for rows in parts(y, settings.shots, torch.Generator().manual_seed(seed))
    )
    return Problem(
        network=fe.FlatNetwork(module),
        training=training,
        validation=validation,
        test=test,
        likelihood="categorical",
        measure=partial(measure, ("accuracy",)),
    )


def parts(labels: Tensor, shots: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to train on, validate on and test on: of each class `shots`, cut 90/10, and the rest.

    Example:
        >>> labels = torch.arange(2).repeat_interleave(30)
        >>> rows = parts(labels, 10, torch.Generator().manual_seed(0))
        >>> [labels[part].bincount().tolist() for part in rows]
        [[9, 9], [1, 1], [20, 20]]
    """
    validation = max(1, shots // 10)
    chosen: tuple[list[Tensor], ...] = ([], [], [])
    for label in range(int(labels.max()) + 1):
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
        ends = [shots - validation, shots]
        for kept, some in zip(chosen, rows.tensor_split(ends), strict=True):
            kept.append(some)
    training, held, test = (torch.cat(rows) for rows in chosen)
    return training, held, test


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar_fs"))
    add_options(parser, "vision.jsonl")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ppl_fe_vision",
        help="folder for the pretrained network and what stage 1 selected",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true", help="ResNet-18, all data: for a GPU")
    parser.add_argument("--quick", action="store_true", help="a tiny network on random images")
    options = parser.parse_args(argv)
    if options.table:
        print("\n".join(tables(options.output)))
        return 0
    settings = FULL if options.full else SMALL
    if options.quick:
        settings = QUICK
        images = random_images(settings.split, seed=0)
    elif not (options.data / "train64.npz").exists():
        print(f"skipped: no CIFAR-FS under {options.data}; give its folder as --data")
        return 0
    else:
        images = read_images(options.data, settings.split, seed=0)
    images = images.to(torch.device(options.device))
    module = pretrained(settings, images, options.work)
    rules = options.rules
    if options.full and "lora" in rules:
        say("lora is left out: ResNet-18 has no linear layer to wrap but its head")
        rules = [rule for rule in rules if rule != "lora"]
    go(
        [TASK],
        rules,
        range(options.seeds),
        settings.budget,
        options.rates,
        partial(make_problem, settings, images, module),
        lambda task: {"form": settings.name, "shots": settings.shots},
        options.output,
        options.work,
        say,
    )
    print("\n".join(tables(options.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
