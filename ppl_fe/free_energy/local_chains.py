"""Chains on the localised tempered posteriors of one or several anchors, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
import xarray as xr
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.data.sources import LoaderData, TensorData, as_data, check_labels
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.program.density import Density, merge_blocks
from ppl_fe.inference.program.full_data import full_data_sums
from ppl_fe.inference.run.one_run import check_chains, run
from ppl_fe.inference.run.run_length import RunLength
from ppl_fe.inference.samplers import BAOAB
from ppl_fe.inference.step.compile import CompileMode
from ppl_fe.models.likelihoods import Likelihood, categorical
from ppl_fe.models.localized import LocalPosterior, local_posterior
from ppl_fe.networks.check_forward import try_inputs
from ppl_fe.networks.flat import FlatNetwork

DEFAULT_LOCALIZATION, DEFAULT_BATCH, DEFAULT_CHAINS = 1.0, 256, 4


class ChainOptions(TypedDict, total=False):
    """Keyword arguments of `sample_local_posteriors`, shared by all estimators."""

    likelihood: str | Likelihood
    localization: float
    inverse_temperature: float | None
    batch_size: int | None
    kernel: type[Kernel]
    step_size: float | Literal["auto"]
    tolerance: float
    num_chains: int
    num_samples: int
    warmup_steps: int
    thinning: int
    chain_method: Literal["vectorized", "sequential", "parallel"]
    seed: int
    save_to: str | Path | None
    progress_bar: bool
    compile: CompileMode


@dataclass(frozen=True)
class LocalChains:
    """Draws about G anchors, C/G chains each, and what does not depend on the draws.

    anchor_loss: (G,) L_n(w*) on all the data. inverse_temperature: (C,), one a chain.
    """

    draws: xr.DataTree
    anchor_loss: Tensor
    num_data: int
    inverse_temperature: Tensor
    num_groups: int
    notes: tuple[str, ...]


def sample_local_posteriors(
    network: FlatNetwork,
    anchors: Tensor,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    localization: float = DEFAULT_LOCALIZATION,
    inverse_temperature: float | None = None,
    ladder: Tensor | None = None,
    batch_size: int | None = DEFAULT_BATCH,
    kernel: type[Kernel] = BAOAB,
    step_size: float | Literal["auto"] = "auto",
    tolerance: float = 0.02,
    num_chains: int = DEFAULT_CHAINS,
    num_samples: int = 500,
    warmup_steps: int = 1000,
    thinning: int = 10,
    chain_method: Literal["vectorized", "sequential", "parallel"] = "vectorized",
    seed: int = 0,
    save_to: str | Path | None = None,
    progress_bar: bool = True,
    compile: CompileMode = "auto",
    description: str = "",
) -> LocalChains:
    """Run `num_chains` chains about each anchor (G, D); the arguments are the estimators'.

    `ladder` (R,) gives the chains of every anchor R inverse temperatures, `num_chains` each.
    """
    check_chains(num_chains, chain_method)
    source = as_data(data)
    loader = source if isinstance(source, LoaderData) else None
    if loader is not None:
        batch_size = loader.batch_size
    notes = []
    n = source.num_data
    if batch_size is not None and batch_size > n:
        notes.append(
            f"batch_size={batch_size} exceeds the data's {n} examples: every step uses all of them"
        )
    program = local_posterior(network, likelihood, localization, inverse_temperature, batch_size, n)
    length = RunLength(num_samples, warmup_steps, thinning)
    args = source.first() if isinstance(source, LoaderData) else (source.inputs, source.targets)
    check_data(program, network, *args)
    if ladder is None:
        rungs = torch.tensor([program.resolved_inverse_temperature(n)], dtype=torch.float64)
    else:
        rungs = ladder
    num_groups = len(anchors) * len(rungs)
    own_anchor = anchors.repeat_interleave(len(rungs) * num_chains, 0)
    own_beta = rungs.repeat_interleave(num_chains).repeat(len(anchors))
    density = Density(
        program,
        args,
        chain_kwargs={"anchor": own_anchor, "inverse_temperature": own_beta.to(anchors)},
        data_per_chain=loader is not None,
        vectorized=chain_method != "sequential",
    )
    anchor_loss = data_loss(program, anchors, source, vectorized=chain_method != "sequential")
    draws = run(
        kernel(program, step_size=step_size, tolerance=tolerance),
        density,
        length,
        num_chains=len(own_anchor),
        seed=seed,
        save_to=save_to,
        progress_bar=progress_bar,
        compile=compile,
        source=loader,
        center=own_anchor,
        least_curvature=localization,
        num_groups=num_groups,
        chain_method=chain_method,
        blocks=network.slices,
        description=description,
        attributes={
            "localization": localization,
            "inverse_temperature": own_beta if ladder is not None else float(rungs[0]),
            "num_groups": num_groups,
            "batch_size": min(batch_size or n, n),
            "anchor_loss": anchor_loss if len(anchors) > 1 else float(anchor_loss[0]),
            "blocks": {
                name: [block.start, block.stop]
                for name, block in merge_blocks(network.slices).items()
            },
        },
    )
    return LocalChains(
        draws,
        anchor_loss,
        n,
        own_beta,
        num_groups,
        tuple(notes),
    )


def data_loss(
    program: LocalPosterior,
    anchors: Tensor,
    source: TensorData | LoaderData,
    *,
    vectorized: bool = True,
) -> Tensor:
    """(G, D) weights -> (G,) L_n(w) = −(1/n) Σ log p(y_i | x_i, w), float64, on all the data."""
    whole = LocalPosterior(**{**vars(program), "num_data": None})
    batches: Iterable[tuple[Any, Tensor]] = (
        [(source.inputs, source.targets)] if isinstance(source, TensorData) else source.one_pass()
    )
    total = torch.zeros(len(anchors), dtype=torch.float64, device=anchors.device)
    for inputs, targets in batches:
        density = Density(
            whole, (inputs, targets), chain_kwargs={"anchor": anchors}, vectorized=vectorized
        )
        total -= full_data_sums(density, anchors).log_likelihood
    return total / source.num_data


def check_data(
    program: LocalPosterior, network: FlatNetwork, inputs: Any, targets: Tensor, what: str = "data"
) -> None:
    """Refuse inputs that the network fails on, and labels that it has no class for.

    Raises:
        TypeError, ValueError: what the argument `what` should give instead.
    """
    one = pytree.tree_map(lambda value: value[:1], inputs)
    with torch.no_grad():
        output = try_inputs(partial(network, network.anchor), one, network.dtype, what)
    if program.likelihood is categorical:
        check_labels(targets, output.shape[-1])


def held_out_loss(
    network: FlatNetwork,
    anchors: Tensor,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    batch_size: int | None = DEFAULT_BATCH,
) -> Tensor:
    """(G, D) weights -> (G,) mean negative log-likelihood on other data than the chains saw."""
    program = local_posterior(network, likelihood, 1.0, 1.0, batch_size)
    source = as_data(data)
    first = source.first() if isinstance(source, LoaderData) else (source.inputs, source.targets)
    check_data(program, network, *first, "held_out")
    return data_loss(program, anchors, source)
