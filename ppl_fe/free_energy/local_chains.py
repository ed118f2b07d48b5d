"""Chains on the localised tempered posteriors of one or several anchors, side by side."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import xarray as xr
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.arguments import require_positive
from ppl_fe.data.sources import LoaderData, TensorData, as_data, check_labels
from ppl_fe.diverged import DivergedError
from ppl_fe.files.digest import digest
from ppl_fe.free_energy.chain_options import USUAL_BATCH, ChainOptions
from ppl_fe.free_energy.likelihood_check import check_likelihood
from ppl_fe.inference.adjusted import MALT
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.program.density import Density, merge_blocks
from ppl_fe.inference.program.full_data import full_data_sums
from ppl_fe.inference.run.one_run import run
from ppl_fe.inference.run_plan import RunPlan, Target
from ppl_fe.inference.step.builder import BuiltSteps
from ppl_fe.models.likelihoods import Likelihood, categorical
from ppl_fe.models.localized import LocalPosterior, local_posterior
from ppl_fe.networks.check_forward import try_inputs
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.ranks import ranks

NOT_FINITE = (
    "the network's outputs at w*, or their log-likelihood, are not finite; check the weights and "
    "the data"
)
# A degenerate minimum is stiffer in its corners than on average: at a step that fits the average,
# with 0.8, chains stick there.
TARGET_ACCEPTANCE = 0.9


@dataclass(frozen=True)
class FreshHead:
    """A head without pretrained values, whose prior is N(0, 1/precision).

    Attributes:
        name: the prefix of its parameters.
        precision: τ, in units of 1/weight².
    """

    name: str
    precision: float = 1.0

    @classmethod
    def named(cls, name: str | None, precision: float) -> FreshHead | None:
        """Give the head of that name, or None where there is none.

        Raises:
            TypeError, ValueError: the precision is no positive number.
        """
        require_positive("head_precision", precision)
        return None if name is None else cls(name, precision)


@dataclass(frozen=True)
class LocalChains:
    """Draws about G anchors, C/G chains each, and what does not depend on the draws.

    Attributes:
        draws: of all C chains.
        anchor_loss: (G,) L_n(w*) on all the data, nats an example.
        num_data: n.
        inverse_temperature: (C,) β of each chain.
        num_groups: G, times the number of rungs if there is a ladder.
        notes: what to read before the numbers.
        head: the fresh head, at whose zero the anchor's loss is; None if there is none.
    """

    draws: xr.DataTree
    anchor_loss: Tensor
    num_data: int
    inverse_temperature: Tensor
    num_groups: int
    notes: tuple[str, ...]
    head: FreshHead | None = None


@dataclass(frozen=True)
class LocalTarget:
    """What chains about G anchors sample, and how; nothing has run yet.

    Attributes:
        kernel: the sampler.
        target: all chains, in groups.
        plan: how they are run.
        attributes: of the draws, beside those of any run.
        anchor_loss, num_data, inverse_temperature, num_groups, notes, head: as in `LocalChains`.
    """

    kernel: Kernel | MALT
    target: Target
    plan: RunPlan
    attributes: dict[str, Any]
    anchor_loss: Tensor
    num_data: int
    inverse_temperature: Tensor
    num_groups: int
    notes: tuple[str, ...]
    head: FreshHead | None


def sample_local_posteriors(
    network: FlatNetwork,
    anchors: Tensor,
    data: Any,
    options: ChainOptions,
    *,
    ladder: Tensor | None = None,
    head: FreshHead | None = None,
    steps: BuiltSteps | None = None,
) -> LocalChains:
    """Run chains about each anchor, on exp(−nβL_n(w) − (γ/2)‖w − w*‖²).

    Args:
        network, anchors, data, options, ladder, head, steps: as in `local_target`.

    Raises:
        ValueError: options out of range; data or weights that do not fit.
        DivergedError: the loss of an anchor is not finite, or no chain stayed so.
    """
    made = local_target(network, anchors, data, options, ladder=ladder, head=head, steps=steps)
    draws = run(made.kernel, made.target, made.plan, attributes=made.attributes)
    return LocalChains(
        draws,
        made.anchor_loss,
        made.num_data,
        made.inverse_temperature,
        made.num_groups,
        made.notes,
        made.head,
    )


def local_target(
    network: FlatNetwork,
    anchors: Tensor,
    data: Any,
    options: ChainOptions,
    *,
    ladder: Tensor | None = None,
    head: FreshHead | None = None,
    steps: BuiltSteps | None = None,
) -> LocalTarget:
    """Make what is run about each anchor.

    Args:
        network: the architecture, and all that its anchors share.
        anchors: (G, D) weights w*.
        data: as in `estimate_free_energy`.
        options: as there; a loader's batch size is its own.
        ladder: (R,) inverse temperatures that the chains of every anchor have, `num_chains` each;
            by default that of `options` alone.
        head: the fresh head, none by default: it has a prior of its own, and the anchors' values
            there do not matter.
        steps: what has been built about other anchors, on the same data, with whatever options; by
            default nothing.

    Raises:
        ValueError: options out of range; data or weights that do not fit.
        DivergedError: the loss of an anchor is not finite.
    """
    source = as_data(data)
    n, loader = source.num_data, source if isinstance(source, LoaderData) else None
    options = options.chosen(source)
    size = batch_of(options, source)
    program, kernel = program_and_kernel(network, source, options, head)
    anchors, args = program.center(anchors), first_rows(source)
    check_data(program, network, *args)
    if ladder is None:
        ladder = torch.tensor([program.resolved_inverse_temperature(n)], dtype=torch.float64)
    own_anchor = anchors.repeat_interleave(len(ladder) * options.num_chains, 0)
    own_beta = ladder.repeat_interleave(options.num_chains).repeat(len(anchors))
    vectorized, num_groups = options.chain_method != "sequential", len(anchors) * len(ladder)
    density = Density(
        program,
        args,
        chain_kwargs={"anchor": own_anchor, "inverse_temperature": own_beta.to(anchors)},
        data_per_chain=loader is not None,
        vectorized=vectorized,
    )
    anchor_loss = data_loss(program, anchors, source, vectorized=vectorized)
    wrong = anchor_loss[~anchor_loss.isfinite()]
    if len(wrong):  # no chain about it would be worth running
        raise DivergedError(f"L(w*) is {float(wrong[0])}: {NOT_FINITE}")
    target = Target(
        density,
        loader,
        center=program.position(own_anchor),
        least_curvature=program.least_curvature,
        num_groups=num_groups,
        blocks=network.slices,
        steps=None if steps is None else steps.of(_what_is_built(network, options, head)),
    )
    attributes = {
        "localization": options.localization,
        **({} if head is None else {"fresh_head": head.name, "head_precision": head.precision}),
        "inverse_temperature": float(ladder[0]) if len(ladder) == 1 else own_beta,
        "num_groups": num_groups,
        "batch_size": min(size or n, n),
        "anchor_loss": anchor_loss if len(anchors) > 1 else float(anchor_loss[0]),
        "blocks": {
            name: [block.start, block.stop] for name, block in merge_blocks(network.slices).items()
        },
    }
    notes: tuple[str, ...] = ()
    if size is not None and size > n:
        notes = (f"batch_size={size} exceeds the data's {n} examples: every step uses all of them",)
    plan = options.plan(len(own_anchor), anchor_loss)
    return LocalTarget(
        kernel, target, plan, attributes, anchor_loss, n, own_beta, num_groups, notes, head
    )


def _what_is_built(network: FlatNetwork, options: ChainOptions, head: FreshHead | None) -> Hashable:
    """Give all that a step depends on beside its inputs, of one architecture and its data."""
    buffers = digest(dict(network.module.named_buffers()))
    run_alone = {"length", "seed", "save_to", "resume", "progress_bar"}
    own = [value for name, value in vars(options).items() if name not in run_alone]
    # A likelihood of the user's own need not have a hash.
    return (buffers, head, *(id(value) if callable(value) else value for value in own))


def passes_of(chains: LocalChains) -> float:
    """Count the passes over the data that the chains of one anchor took, warm-up included.

    The gradients by which it measures curvature are among them.
    """
    attrs = chains.draws.attrs
    each = len(chains.inverse_temperature) // chains.num_groups
    return float(attrs["num_gradients"] * each * attrs["batch_size"] / chains.num_data)


def program_and_kernel(
    network: FlatNetwork,
    source: TensorData | LoaderData,
    options: ChainOptions,
    head: FreshHead | None = None,
) -> tuple[LocalPosterior, Kernel | MALT]:
    """Make the program of a network's chains, and its sampler.

    Raises:
        TypeError, ValueError: options out of range.
    """
    options = options.chosen(source)
    kernel, size = options.kernel, batch_of(options, source)
    assert kernel != "auto"
    options.plan(options.num_chains, torch.zeros(1))
    program = local_posterior(
        network,
        options.likelihood,
        options.localization,
        options.inverse_temperature,
        None if size is None else size // ranks().total,
        source.num_data,
        *(() if head is None else (head.name, head.precision)),
    )
    program.resolved_inverse_temperature(source.num_data)
    if issubclass(kernel, MALT):
        return program, kernel(
            program, step_size=options.step_size, target_acceptance=TARGET_ACCEPTANCE
        )
    return program, kernel(program, step_size=options.step_size, tolerance=options.tolerance)


def batch_of(options: ChainOptions, source: TensorData | LoaderData) -> int | None:
    """Give the rows of a minibatch, of all ranks together: a loader has its own; None for all."""
    if isinstance(source, LoaderData):
        return source.batch_size
    assert options.batch_size != "auto"
    return options.batch_size


def first_rows(source: TensorData | LoaderData) -> tuple[Any, Tensor]:
    """Give all the data in memory, or a loader's first batch: inputs and targets."""
    return source.first() if isinstance(source, LoaderData) else (source.inputs, source.targets)


def data_loss(
    program: LocalPosterior,
    anchors: Tensor,
    source: TensorData | LoaderData,
    *,
    vectorized: bool = True,
) -> Tensor:
    """Compute L_n(w) = −(1/n) Σ log p(y_i | x_i, w) of weights (G, D) on all the data.

    Returns:
        (G,) float64, nats an example.
    """
    whole = replace(program, num_data=None)
    batches: Iterable[tuple[Any, Tensor]] = (
        [(source.inputs, source.targets)] if isinstance(source, TensorData) else source.one_pass()
    )
    total = torch.zeros(len(anchors), dtype=torch.float64, device=anchors.device)
    for inputs, targets in batches:
        density = Density(
            whole, (inputs, targets), chain_kwargs={"anchor": anchors}, vectorized=vectorized
        )
        total -= full_data_sums(density, program.position(anchors)).log_likelihood
    return total / source.num_data


def check_data(
    program: LocalPosterior, network: FlatNetwork, inputs: Any, targets: Tensor, what: str = "data"
) -> None:
    """Refuse inputs that the network fails on, labels without a class, and no likelihood.

    Raises:
        TypeError, ValueError: what the argument `what` should give instead.
    """
    one = pytree.tree_map(lambda value: value[:1], inputs)
    with torch.no_grad():
        output = try_inputs(partial(network, network.anchor), one, network.dtype, what)
        if program.likelihood is categorical:
            check_labels(targets, output.shape[-1])
        check_likelihood(program.likelihood, output, targets[:1])


def held_out_loss(
    network: FlatNetwork,
    anchors: Tensor,
    data: Any,
    *,
    likelihood: str | Likelihood = ChainOptions.likelihood,
    batch_size: int | None = USUAL_BATCH,
) -> Tensor:
    """Compute the mean negative log-likelihood of weights on other data than the chains saw.

    Args:
        network: the architecture.
        anchors: (G, D) weights.
        data: in any form that `fe.as_data` takes.
        likelihood: a name, or a function of (outputs, targets).
        batch_size: examples at once, for the plate of a program; all of them are used.

    Returns:
        (G,) float64, nats an example.
    """
    program = local_posterior(network, likelihood, 1.0, 1.0, batch_size)
    source = as_data(data)
    check_data(program, network, *first_rows(source), "held_out")
    return data_loss(program, anchors, source)
