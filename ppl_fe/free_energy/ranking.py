"""Several checkpoints of one architecture, ranked by pretraining free energy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch import Tensor, nn

from ppl_fe.arguments import named_arguments
from ppl_fe.data.sources import LoaderData, TensorData, as_data
from ppl_fe.free_energy.baselines.columns import baseline_columns
from ppl_fe.free_energy.candidates import (
    Checkpoint,
    Trial,
    add_columns,
    in_words,
    named_checkpoints,
)
from ppl_fe.free_energy.chain_options import ChainOptions, Sampler, length_of
from ppl_fe.free_energy.contenders import Contender, GoingOn, Heat
from ppl_fe.free_energy.kept_ranking import KeptRanking, facts_of, kept_ranking
from ppl_fe.free_energy.local_chains import program_and_kernel
from ppl_fe.free_energy.lot_work import Materials, Pilot, Rows, all_draws, more_draws, pilot
from ppl_fe.free_energy.lots import Lot, run_lots
from ppl_fe.free_energy.places import Elsewhere, Errand, Here, chosen_place
from ppl_fe.free_energy.racing import Outcome, race
from ppl_fe.free_energy.ranking_rows import row_of, table_of
from ppl_fe.inference.step.builder import BuiltSteps
from ppl_fe.inference.step.compile import CompileMode
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.flat import FlatNetwork, require_network
from ppl_fe.renamed import renamed_arguments
from ppl_fe.tasks.n_jobs import check_engine, opened_workers


@renamed_arguments(baseline_columns="baselines", head="features")
@named_arguments
def rank_checkpoints(
    checkpoints: Mapping[str, Checkpoint] | Iterable[Checkpoint],
    module: nn.Module,
    data: Any,
    *,
    held_out: Any = None,
    baselines: bool = False,
    features: str | None = None,
    likelihood: str | Likelihood = ChainOptions.likelihood,
    localization: float = ChainOptions.localization,
    inverse_temperature: float | None = ChainOptions.inverse_temperature,
    batch_size: int | Literal["auto"] | None = ChainOptions.batch_size,
    kernel: Sampler | Literal["auto"] = ChainOptions.kernel,
    step_size: float | Literal["auto"] = ChainOptions.step_size,
    tolerance: float = ChainOptions.tolerance,
    num_chains: int = ChainOptions.num_chains,
    until: Literal["order", "mixed"] = "order",
    num_samples: int | None = None,
    warmup_steps: int | None = None,
    thinning: int | None = None,
    chain_method: Literal["vectorized", "sequential", "parallel"] = ChainOptions.chain_method,
    seed: int = ChainOptions.seed,
    executor: Executor | None = None,
    n_jobs: int | None = None,
    save_to: str | Path | None = ChainOptions.save_to,
    resume: bool = ChainOptions.resume,
    progress_bar: bool = ChainOptions.progress_bar,
    compile: CompileMode = ChainOptions.compile,
) -> pd.DataFrame:
    """Rank pretrained checkpoints by free energy, from pretraining data alone.

    Each checkpoint's WBIC = E[nL_n(w)] under its localised tempered posterior (see
    `estimate_free_energy`). Checkpoints run side by side as further chains of one vectorised step.
    Where there are labels of the task itself, `choose_checkpoint` asks those.

    Args:
        checkpoints: name -> file, folder or state dict, all of one architecture; or a list of
            them, where files go by their paths and a state dict by its place.
        module: the architecture; its own weights do not matter and are not changed.
        data: the pretraining data, as in `estimate_free_energy`.
        held_out: pretraining data that no checkpoint was trained on. Adds the columns
            `validation_loss` and `held_out`, n·K̂ + λ̂ log n with K̂ the held-out loss: the bound
            behind the criterion is stated in the population loss.
        baselines: add the columns geometric_complexity, neural_collapse and perturbed_loss (the
            training loss after Gaussian noise on the weights), False by default; the training loss
            is the column anchor_loss.
        features: the module whose input counts as the features; the last linear layer by default.
        likelihood: "categorical" (default), "normal" (of sd 1), "next_token", or a function of
            (outputs, targets) that makes the observed site; with a noise of sd 0.3 its body is
            ``pyro.sample("y", dist.Normal(outputs[:, 0], 0.3), obs=targets)``.
        localization: γ, 1.0 by default, in units of 1/weight²: 1/√γ is the radius of the
            neighbourhood of w*. A larger one is narrower and sooner sampled; numbers compare at one
            γ alone.
        inverse_temperature: β; 1/log n by default.
        batch_size: examples a step; None for all the data. "auto" by default: all of them for
            `fe.MALT`, otherwise 256. A loader has its own.
        kernel: the sampler's class; "auto" by default. That is `fe.MALT`, exact at any step, for up
            to 2,560 examples or with batch_size=None, as long as the data are in memory and neither
            a step nor a length is given; otherwise `fe.BAOAB`.
        step_size: ε; "auto" by default, chosen in warm-up.
        tolerance: of samplers other than MALT, the largest predicted excess temperature of the
            stiffest direction, 0.02 by default; "auto" steps are as long as it allows.
        num_chains: of each checkpoint, 4 by default.
        until: when to stop, where none of the next three is given. "order" (default): after a pilot
            of all (R-hat 1.05, ESS 100) only those go on that may be the lowest, with a probability
            of 1 % and more, until one has 95 % or their errors are below what matters: half a nat,
            or 2 % of λ̂. "mixed": each until its loss has an R-hat of 1.01 and an ESS of 400, and
            for a standard error of λ̂ of 2 % up to four times as long. A saved ranking is "mixed".
        num_samples: S, kept draws a chain; where one of these is given, the others are 500, 1000
            and 10 by default. Runs with a process a chain have this length.
        warmup_steps: steps before the first draw.
        thinning: steps a kept draw.
        chain_method: "vectorized" (default), "sequential" or "parallel", as in `fe.sample`.
        seed: 0 by default; equal seeds give equal draws.
        executor: where lots of checkpoints run, each as a task: any `concurrent.futures.Executor`,
            as Dask's `client.get_executor()`; by default this process. The table is the same, bit
            for bit, up to how many threads torch has here; a task has one. A lot holds checkpoints
            that share their buffers, up to 48 chains or 5·10⁷ weights of chains in all: of small
            networks twelve.
        n_jobs: in its place, processes of this machine: −1 for one a core. Default none.
        save_to: new folder, none by default: `table.json`, to which rows go as they come, and one
            zarr store for each lot that ran side by side (`0.zarr`, ...), in the order given.
        resume: go on with the ranking at `save_to`; checkpoints may join it. False by default.
        progress_bar: True by default.
        compile: "auto" by default, as in `fe.sample`.

    Returns:
        One row a checkpoint, best first: wbic, wbic_mcse, llc, llc_mcse, anchor_loss, r_hat, ess,
        passes (over the data, by all gradients of its chains, those of warm-up among them), p_best
        (the probability of the lowest WBIC given the standard errors; it knows nothing of
        transfer), note (read it before the number) and error (why there is no number).
        No row is ever lost. p_best is NaN where chains have mixed so badly (R-hat of 1.1 and more,
        or an ESS of 40 and less) that their standard error is worth nothing; the others are then
        compared among themselves. `table.attrs["read_first"]` says so, and when the criterion
        is to be trusted.

    Raises:
        TypeError: a misspelt argument, before any file is read; one checkpoint, not several; with
            an executor, a module, data or likelihood that cannot be pickled.
        ValueError: no checkpoints, or two of one name; options out of range; data that no
            checkpoint and not the module itself can be put through. A bad checkpoint raises
            nothing: its row says what is wrong, and the others are ranked without it.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> inputs = torch.randn(100, 2)
        >>> states = {f"w={w}": {"weight": torch.full((1, 2), w)} for w in (0.0, 1.0)}
        >>> table = rank_checkpoints(states, torch.nn.Linear(2, 1, bias=False),
        ...     (inputs, torch.zeros(100)), likelihood="normal", localization=100.0,
        ...     num_samples=100, progress_bar=False)
        >>> list(table.index)
        ['w=0.0', 'w=1.0']
    """
    named = named_checkpoints(checkpoints)
    options = ChainOptions(
        likelihood=likelihood,
        localization=localization,
        inverse_temperature=inverse_temperature,
        batch_size=batch_size,
        kernel=kernel,
        step_size=step_size,
        tolerance=tolerance,
        num_chains=num_chains,
        length=length_of(num_samples, warmup_steps, thinning),
        chain_method=chain_method,
        seed=seed,
        save_to=save_to,
        progress_bar=progress_bar,
        compile=compile,
    )
    check_engine(executor, n_jobs)
    if until not in ("order", "mixed"):
        raise ValueError(f"until must be 'order' or 'mixed', got {until!r}")
    template = FlatNetwork(module)
    require_network(template)
    source, other = as_data(data), None if held_out is None else as_data(held_out)
    options = options.chosen(source)
    program_and_kernel(template, source, options)  # what it refuses should cost no reading
    given = Materials(template, {}, source, BuiltSteps(), other, whole=save_to is not None)
    with (
        kept_ranking(save_to, resume=resume) as kept,
        opened_workers(executor, n_jobs) as workers,
        chosen_place(workers, given, named, options) as place_of,
    ):
        if kept is not None:
            kept.hold_to(facts_of(template, source, other, options))
        networks, errors = Trial(source, other, options).come_through(template, named)
        rows: dict[str, dict[str, Any]] = {
            name: {"note": "", "error": errors.get(name, "")} for name in named
        }
        if baselines:  # before the chains: what they cannot take should cost no hours
            add_columns(rows, _baselines(networks, source, features, likelihood))
        place, outcome = place_of(networks), None
        if until == "order" and options.has_targets and save_to is None:
            found, outcome = _race_all(place, networks, options)
        else:
            found = _run_all(place, networks, options, kept)
        add_columns(rows, found)
        add_columns(rows, {name: {"note": said} for name, said in place.tried.items()})
    return table_of(rows, seed, source.num_data, outcome)


def _baselines(
    networks: Mapping[str, FlatNetwork],
    source: TensorData | LoaderData,
    features: str | None,
    likelihood: str | Likelihood,
) -> dict[str, dict[str, Any]]:
    """Compute the criteria of each checkpoint; what keeps one of them from it becomes a note.

    Raises:
        ValueError: data of another kind; what none of the checkpoints can do.
    """
    if not isinstance(source, TensorData) or not isinstance(source.inputs, Tensor):
        raise ValueError("baselines=True needs the data as a tuple of two tensors")
    pair = source.inputs, source.targets
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, Exception] = {}
    for name, network in networks.items():
        try:
            found[name] = dict(baseline_columns(network, pair, features, likelihood))
        except Exception as error:
            failed[name] = error
    if failed and not found:
        raise next(iter(failed.values()))
    notes = {name: {"note": f"no baselines: {in_words(error)}"} for name, error in failed.items()}
    return found | notes


def _run_all(
    place: Here | Elsewhere,
    networks: Mapping[str, FlatNetwork],
    options: ChainOptions,
    kept: KeptRanking | None,
) -> Rows:
    """Run the chains of all checkpoints, each lot until it is done; give the columns of each."""

    def run(lots: Sequence[Lot]) -> Iterator[tuple[Lot, Any]]:
        return place.run(all_draws, [Errand(lot) for lot in lots])

    rows: Rows = {}
    for lot, found in run_lots(networks, options, run, kept):
        if isinstance(found, Exception):
            found = {name: {"error": in_words(found)} for name in lot.names}
        rows |= {name: dict(row) for name, row in found.items()}
    return rows


def _race_all(
    place: Here | Elsewhere, networks: Mapping[str, FlatNetwork], options: ChainOptions
) -> tuple[Rows, Outcome]:
    """Run a pilot of all checkpoints, then those on whose order it depends; give their columns."""
    lots: dict[Heat, Lot] = {}

    def run(wave: Sequence[Lot]) -> Iterator[tuple[Lot, Any]]:
        return place.run(pilot, [Errand(lot, (place.shelf(lot.number),)) for lot in wave])

    def go_on(groups: Sequence[Sequence[Contender]]) -> bool:
        going = {lots[each[0].heat].number: each for each in groups}
        errands = [Errand(lots[each[0].heat], (GoingOn.of(each),)) for each in groups]
        for lot, stage in place.run(more_draws, errands):
            contenders = going[lot.number]
            if contenders[0].heat.take(contenders, stage):
                return True
        return False

    rows: Rows = {}
    pilots: list[tuple[Lot, dict[str, Pilot]]] = []
    for lot, found in run_lots(networks, options, run):
        if isinstance(found, Exception):
            rows |= {name: {"error": in_words(found)} for name in lot.names}
        else:
            pilots.append((lot, found))
    contenders: dict[str, Contender] = {}
    losses: dict[str, float] = {}
    for lot, found in sorted(pilots, key=lambda one: one[0].number):  # however they came
        for name, (heat, own) in found.items():
            contenders[name], lots[heat] = heat.contenders[name], lot
            losses |= own
    interrupted = any(heat.interrupted for heat in lots)
    outcome = race(contenders, options.seed, go_on, interrupted)
    for name, estimate in outcome.estimates.items():
        if isinstance(estimate, Exception):
            rows[name] = {"error": in_words(estimate)}
        else:
            rows[name] = row_of(estimate, outcome.passes[name], losses.get(name))
    return rows, outcome
