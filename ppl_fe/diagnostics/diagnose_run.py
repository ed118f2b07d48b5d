"""`diagnose`: all checks of a run, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from ppl_fe.arguments import did_you_mean, named_arguments
from ppl_fe.diagnostics import stein
from ppl_fe.diagnostics.checks import lengths, mixing, single_chains, temperatures
from ppl_fe.diagnostics.diagnosis import Check, Diagnosis
from ppl_fe.diagnostics.run_data import Run, open_draws, read_run
from ppl_fe.diagnostics.settings import missing, settings
from ppl_fe.inference.kernels import Kernel


@named_arguments
def diagnose(
    draws: Any,
    *,
    difference: float | None = None,
    superchains: int | None = None,
    group: int | None = None,
    model: Kernel | Callable[..., Any] | None = None,
    data: Any = (),
) -> Diagnosis:
    """Check whether the draws can be believed, and if not, say what has to change.

    Every check has a value, a threshold and, if it failed, one sentence of advice. Causes come
    before what they bring about, so that the first that failed is the one to act on:

    - lengths: interrupted runs, warm-up and run in relaxation times;
    - temperatures, configurational (overall, worst layer, stiffest direction) and kinetic, within
      10 % of the target's or within their error; the excess predicted for the step; the heat of
      minibatches and step; λ̂ at half the step where `check_half_step` was asked for;
    - single chains: failed, on shared minibatches, stuck, in another place than the others;
      trajectories whose energy was lost; a mode that a descent found at the start and the draws
      hardly saw;
    - the level: λ̂ below zero (chains below L_n(w*)), drift of the loss;
    - mixing: worst rank R-hat < 1.01 and worst bulk and tail ESS > 400 of the loss and the sites of
      few values (Vehtari et al. 2021); of networks the split R-hat of all coordinates, and the
      share of them above 1.01, overall and in the worst layer. An estimate of the free energy is
      made of the loss alone: what single weights do is then a note, which fails nothing;
    - with `model` and `data`, the draws against the model's scores on all the data (`stein`).

    Random checks fail a healthy run once in 10⁵ each, but for R-hat < 1.01 and ESS > 400, which
    stand as published: a well-mixed run of ESS 2000 and more passes them (`mixing`); and for the
    Stein test, whose p-value must be above 0.001.
    A pass is no proof: a mode that no chain has found shows in none of these numbers.

    Args:
        draws: of `fe.sample`; or the path they were saved to (by `save_to`, or their `to_netcdf`),
            or an estimate with `.draws`.
        difference: of WBIC in nats, between checkpoints to be distinguished; then the Monte Carlo
            error must be below a quarter of it. None by default: no such check.
        superchains: K equal consecutive groups of chains that shared their start
            (`initial_params`); many short chains are then judged by nested R-hat (Margossian et
            al. 2024) instead of split R-hat.
        group: which target, where several ran side by side (`rank_checkpoints`, a ladder of
            temperatures). Their chains must not be compared, so there is no default.
        model: the program of the draws, or its kernel; none by default. The check costs 400
            gradients on all the data.
        data: the program's arguments: a tuple of them, a mapping of those given by keyword, or
            the single one as it is; a list counts as one argument.

    Returns:
        A `Diagnosis`: `.passed`, `.failures`, `.table`. A check that does not apply is left out
        (no momenta, one chain), except that R-hat of one chain counts as failed.

    Raises:
        TypeError: draws of another kind; `data` that are not the arguments of `model`.
        FileNotFoundError: nothing at that path.
        ValueError: not draws of `fe.sample`, fewer than twelve a chain, temperature 0, or several
            targets without `group`; a `model` that the draws are not of, data
            without a model, or a model of several targets.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> import ppl_fe as fe
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        >>> draws = fe.sample(
        ...     fe.BAOAB(model), num_samples=50, thinning=20, warmup_steps=1000, progress_bar=False)
        >>> verdict = fe.diagnose(draws)
        >>> verdict.passed, verdict.failures                   # 200 draws are too few
        (False, ['r_hat', 'ess_bulk', 'ess_tail'])
    """
    tree = open_draws(draws)
    _require_all(tree)
    run = read_run(tree, group)
    nested = mixing.nested_r_hat(run, superchains)
    by_relaxation = [lengths.warmup_length(run), lengths.run_length(run)]
    # Not predicted, it is measured by the autocorrelation, which a chain stuck or apart drives up.
    predicted = not lengths.relaxation(run).measured
    checks: list[Check | None] = [  # causes before what they bring about
        single_chains.failed_chains(run),
        lengths.interrupted(run),
        temperatures.predicted_excess(run),
        *(by_relaxation if predicted else ()),
        single_chains.diverging(run),
        single_chains.unvisited_modes(run),
        single_chains.stuck_chains(run),
        single_chains.chain_apart(run),
        *(() if predicted else by_relaxation),
        single_chains.shared_minibatches(run),
        temperatures.gradient_noise(run),
        temperatures.temperature(run),
        temperatures.block_temperature(run),
        temperatures.stiff_temperature(run),
        temperatures.kinetic_temperature(run),
        lengths.half_step(run),
        lengths.below_anchor(run),
        lengths.drift(run),
        nested if nested is not None else mixing.r_hat(run),
        *_of_coordinates(run),
        mixing.ess_bulk(run),
        mixing.ess_tail(run),
        mixing.wbic_error(run, difference),
        stein.stein_p_value(tree, model, data, group),
    ]
    return Diagnosis(tuple(check for check in checks if check is not None))


def _of_coordinates(run: Run) -> list[Check | None]:
    """Check the mixing of single coordinates; of an estimate it is a note, as it is not for them.

    Hidden units that change places leave no weight the same law in all chains, and the loss the
    same one.
    """
    checks = [
        mixing.coordinate_r_hat(run),
        mixing.coordinates_unmixed(run),
        mixing.layer_unmixed(run),
    ]
    if not run.is_estimate:
        return checks
    checks.append(single_chains.coordinate_apart(run))
    return [None if check is None else check.as_note() for check in checks]


def _require_all(draws: xr.DataTree) -> None:
    """Refuse draws without a setting or statistic that some check needs, or without any site."""
    settings(draws.attrs, of_all=True)
    for name in ("loss", "lp", "gradient_norm", "step_size"):
        if name not in draws["sample_stats"]:
            raise missing(name)
    if not draws["posterior"].data_vars:
        raise missing("site")


@named_arguments
def summary(
    draws: Any,
    var_names: str | Sequence[str] | None = None,
    *,
    filter_vars: Literal["like", "regex"] | None = None,
    group: str = "posterior",
    coords: Mapping[str, Any] | None = None,
    kind: str = "all",
    fmt: Literal["wide", "long"] = "wide",
    ci_prob: float | None = None,
    ci_kind: Literal["hdi", "eti"] | None = None,
    round_to: int | Literal["none"] = 2,
    skipna: bool = False,
) -> pd.DataFrame:
    """Make ArviZ's table of the posterior: mean, sd, interval, ESS, R-hat, MCSE, one row a scalar.

    Args:
        draws: as in `diagnose`.
        var_names: sites to show, all by default; "~name" leaves one out.
        filter_vars: how names are meant: as they are (default), by a part of them ("like") or by
            regular expressions ("regex").
        group: of the draws, "posterior" by default; "posterior_predictive", say.
        coords: dimension -> the entries to show; all by default.
        kind: "all" (default), "stats", "diagnostics", and the same of medians, as in ArviZ.
        fmt: "wide" (default) or "long": a column a statistic, or a row.
        ci_prob: probability of the interval; ArviZ's setting by default.
        ci_kind: "hdi" or "eti"; ArviZ's setting by default.
        round_to: decimals, 2 by default; "none" keeps all.
        skipna: leave out NaN. Default False.

    Raises:
        TypeError, FileNotFoundError, ValueError: as `diagnose`; a site that is not there.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> import ppl_fe as fe
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        >>> draws = fe.sample(fe.BAOAB(model), num_samples=50, progress_bar=False)
        >>> list(fe.summary(draws).index)
        ['w[0]', 'w[1]', 'w[2]']
        >>> list(fe.summary(draws, kind="stats", coords={"w_dim_0": [1]}).columns)[:2]
        ['mean', 'sd']
    """
    import arviz_stats

    tree = open_draws(draws)
    if group not in tree.children:
        near = did_you_mean(group, tree.children) or f"there are {', '.join(tree.children)}"
        raise ValueError(f"draws have no group {group!r}; {near}")
    held = tree[group].to_dataset()
    if not any(values.size for values in held.data_vars.values()):
        raise missing("values of any site")
    some = held[[name for name, values in held.data_vars.items() if values.size]]
    # Entries that no draw changes (the zeros of a Cholesky factor) have an R-hat of 0/0.
    with np.errstate(invalid="ignore"):
        table: pd.DataFrame = arviz_stats.summary(
            xr.DataTree.from_dict({group: some}),
            var_names=var_names,
            filter_vars=filter_vars,
            group=group,
            coords=coords,
            kind=kind,
            fmt=fmt,
            ci_prob=ci_prob,
            ci_kind=ci_kind,
            round_to=round_to,
            skipna=skipna,
        )
    return table
