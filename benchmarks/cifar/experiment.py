"""One training configuration from start to finish: a job of the experiment."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import ppl_fe as fe
from cifar.data import Images
from cifar.finetuning import HEAD, Episodes, draw_episodes, fine_tune
from cifar.pretraining import full_loss, pretrain
from cifar.settings import Chains, Settings
from ppl_fe.demo.pretraining import Configuration
from ppl_fe.free_energy.baselines.features import layer_inputs
from ppl_fe.free_energy.baselines.geometric_complexity import geometric_complexity
from ppl_fe.free_energy.baselines.neural_collapse import neural_collapse
from ppl_fe.networks.flat import FlatNetwork

Say = Callable[[str], None]

OUTCOMES = {
    "noise": "pretraining classes, fresh images with pixel noise, 5-shot",
    "fresh": "pretraining classes, fresh images, no shift, 5-shot",
    "full": "the 20 meta-test classes, full fine-tuning",
    "few": "meta-test classes, 5-way 5-shot",
}


def draw_tasks(images: Images, settings: Settings, seed: int) -> dict[str, Episodes]:
    """The episodes of every outcome; the same for all checkpoints."""
    same = partial(
        draw_episodes,
        images.fresh,
        ways=images.num_classes,
        shots=5,
        tests=settings.tests,
        num_episodes=settings.same_episodes,
    )
    new = partial(draw_episodes, images.downstream, tests=settings.tests)
    return {
        "noise": same(seed=seed, noise=settings.noise),
        "fresh": same(seed=seed + 1),
        "full": new(
            ways=20,
            shots=settings.full_shots,
            num_episodes=settings.repeats,
            batch_size=settings.full_batch,
            seed=seed + 2,
        ),
        "few": new(ways=5, shots=5, num_episodes=settings.ways_episodes, seed=seed + 3),
    }


def run_configuration(
    configuration: Configuration,
    settings: Settings,
    images: Images,
    seed: int,
    folder: Path,
    say: Say,
) -> pd.DataFrame:
    """Pretrain all seeds, fine-tune them, estimate every criterion: one row a checkpoint."""
    build = partial(settings.build, images.num_classes)
    module = build()
    network = FlatNetwork(module.to(images.training[0].device))
    started = time.perf_counter()
    trained = pretrain(
        build,
        network,
        images.training,
        configuration,
        settings.num_seeds,
        target_loss=settings.target_loss,
        max_epochs=settings.max_epochs,
        seed=seed,
    )
    seconds = time.perf_counter() - started
    names = [f"{configuration} seed={k}" for k in range(settings.num_seeds)]
    epochs = trained.epochs.nan_to_num(settings.max_epochs)
    table = pd.DataFrame(
        {
            "configuration": str(configuration),
            "training_loss": trained.losses.tolist(),
            "epochs": trained.epochs.tolist(),
            "epoch_seconds": seconds / epochs.sum().item(),
            "weight_norm": torch.linalg.vector_norm(trained.vectors, dim=1).tolist(),
            "validation_loss": full_loss(network, trained.vectors, images.held_out).tolist(),
        },
        index=pd.Index(names, name="checkpoint"),
    )
    torch.save(trained.vectors, folder / f"{configuration}.pt".replace(" ", "_"))
    good = trained.losses.isfinite()
    say(f"{configuration}: {int(good.sum())} of {len(good)} at the target, {seconds:.0f} s")
    if not good.any():
        return table
    kept = [name for name, reached in zip(names, good.tolist(), strict=True) if reached]
    measured = pd.DataFrame(index=pd.Index(kept, name="checkpoint"))
    vectors = trained.vectors[good.to(trained.vectors.device)]
    for outcome, episodes in draw_tasks(images, settings, seed).items():
        found = fine_tune(
            network,
            vectors,
            episodes,
            num_steps=settings.num_steps,
            head_rate=settings.head_rate,
            backbone_rate=settings.backbone_rate,
            seed=seed,
        )
        measured[outcome] = found.mean.numpy()
        # Errors are paired over all configurations, so the accuracies themselves go on.
        torch.save(found.accuracies, folder / f"{configuration}_{outcome}.pt".replace(" ", "_"))
    say(f"{configuration}: fine-tuned")
    for suffix, chains in (("", settings.wide), ("_local", settings.tight)):
        part = estimate(network, dict(zip(kept, vectors, strict=True)), images, chains, seed)
        measured = measured.join(part.add_suffix(suffix))
        say(f"{configuration}: free energy at localisation {chains.localization:g}")
    found_geometry = [geometry(network, vector, images, settings) for vector in vectors]
    return table.join(measured).join(pd.DataFrame(found_geometry, index=measured.index))


def estimate(
    network: FlatNetwork, vectors: dict[str, Tensor], images: Images, chains: Chains, seed: int
) -> pd.DataFrame:
    """WBIC, its held-out form, λ̂ and diagnostics of each checkpoint, and the seconds each took."""
    started = time.perf_counter()
    ranking = fe.rank_checkpoints(
        {name: network.unflatten(vector) for name, vector in vectors.items()},
        network.module,
        images.training,
        held_out=images.held_out,
        localization=chains.localization,
        num_chains=chains.num_chains,
        num_samples=chains.num_samples,
        thinning=chains.thinning,
        warmup_steps=chains.warmup_steps,
        batch_size=chains.batch_size,
        progress_bar=False,
        seed=seed,
    )
    ranking["seconds"] = (time.perf_counter() - started) / len(vectors)
    wanted = ["wbic", "wbic_mcse", "llc", "llc_mcse", "held_out", "r_hat", "ess", "seconds"]
    table: pd.DataFrame = ranking.loc[:, [*wanted, "note", "error"]]
    return table


def geometry(
    network: FlatNetwork, vector: Tensor, images: Images, settings: Settings
) -> dict[str, float]:
    """The two baselines that look at the features."""
    inputs, targets = images.training
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    some = inputs[order[: settings.complexity_images].to(inputs.device)]
    with torch.no_grad():
        found = torch.cat(
            [layer_inputs(network, vector, x, HEAD) for x in torch.split(inputs, 1000)]
        )
    return {
        "geometric_complexity": geometric_complexity(
            network, vector, some, HEAD, chunk_size=settings.complexity_chunk
        ),
        "neural_collapse": neural_collapse(found, targets),
    }
