"""Which run a call asks for: its settings, its data and its program; and where two calls differ."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose, isnan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.files.digest import digest
from ppl_fe.inference.program.density import Density, Tensors
from ppl_fe.inference.pyro_kernel import PyroKernel
from ppl_fe.inference.run_plan import RunPlan, Target
from ppl_fe.inference.warmup.advice import LOADER
from ppl_fe.ranks import are_several, ranks
from ppl_fe.version import __version__

WIDTHS = (0.1, 1.0)  # of the cubes that the points lie in, at which a program is evaluated
EVALUATED = ("log-probability", "mean", "mean size")  # of a site, at each point


def identity(kernel: PyroKernel, target: Target, plan: RunPlan) -> dict[str, Any]:
    """The settings that identify a run; a call that resumes it must give equal ones."""
    density, source = target.density, target.source
    batches = {plate.name: [plate.subsample_size, plate.size] for plate in density.subsamples}
    if source is not None:
        batches = {LOADER: [source.batch_size, source.num_data]}
    return {
        "inference_library_version": __version__,
        **kernel.settings,
        **vars(plan.length),
        **({} if plan.until is None else {"until": _listed(vars(plan.until))}),
        "num_chains": plan.num_chains,
        "num_data": density.num_data,
        "minibatches_of": batches,
        "sites": {site.name: list(site.shape) for site in density.sites},
        "seed": plan.seed,
        **({"ranks": ranks().total} if are_several() else {}),
    }


def _listed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn tuples into lists, as which they come back from a file."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def fingerprint(target: Target) -> dict[str, Any]:
    """What tells other data and another program: as much as a call that resumes must agree in.

    Of tensors it is their SHA-256; of a loader that of a batch from all over the data set, without
    what comes out differently each time it is read. A program has no bytes to be compared: it is
    evaluated at two fixed points, on minibatches from all over the data, so that what it closes
    over (weights, data, constants) counts as well.

    Args:
        target: what is sampled.

    Returns:
        data: what messages call a tensor -> its SHA-256. program: site -> at each point, the
        log-probability and the mean and mean size of the values. precision: to which two
        evaluations of a program agree, on whatever machine.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=y)
        >>> found = fingerprint(Target(Density(model, (torch.tensor(2.0),))))
        >>> list(found["data"]), {name: len(of) for name, of in found["program"].items()}
        (['argument 0'], {'x': 2, 'y': 2})
    """
    density = target.density
    tensors, given = _data(target)
    given |= density.chain_kwargs
    if target.start is not None:
        given["initial_params"] = target.start
    data = {name: digest({"": tensor}) for name, tensor in given.items()}
    return {
        "data": data,
        # Of other data in each call the program is other in each call.
        "program": _evaluated(density, tensors) if {*density.program.names} <= {*data} else {},
        "precision": torch.finfo(density.dtype).eps ** 0.5,
    }


def refuse_other_run(path: Path, asked: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Compare what identifies this call with what identified the one that began a stored run.

    Args:
        path: of the stored run.
        asked: `identity`, `fingerprint` and more facts of this call.
        stored: those of that one.

    Raises:
        ValueError: they differ; the message says in what.
    """
    own = ("data", "program", "precision")
    settings = {k: v for k, v in asked.items() if k not in own and stored.get(k) != v}
    was = {name: stored.get(name) for name in settings}
    others = [f"with {was}, not with {settings}"] if settings else []
    before = stored.get("data", {})
    data = sorted(k for k in {*asked["data"], *before} if asked["data"].get(k) != before.get(k))
    if data:
        others.append(f"with other data ({', '.join(data)})")
    elif not settings:
        others += _other_program(asked["program"], stored["program"], asked["precision"])
    if others:
        raise ValueError(
            f"resume=True: {path} was begun {' and '.join(others)}; repeat the call that began it"
        )


def _data(target: Target) -> tuple[Tensors, dict[str, Tensor]]:
    """Collect the tensors to evaluate a program on, and by name those that identify the data."""
    density, source = target.density, target.source
    names, tensors = density.program.names, density.tensors
    if source is None:
        return tensors, dict(zip(names, tensors, strict=True))
    once, again = (pytree.tree_leaves(source.spread()) for _ in range(2))
    same = {
        name: one
        for name, one, other in zip(names, once, again, strict=False)
        if torch.equal(one, other)
    }
    more = dict(zip(names[len(once) :], tensors[len(once) :], strict=True))
    share = source.batch_size // ranks().total  # of each rank, as the program gets them
    batch = tuple(tensor[:share].to(density.device) for tensor in once)
    return (*batch, *more.values()), same | more


def _evaluated(density: Density, tensors: Tensors) -> dict[str, list[list[float]]]:
    """Evaluate a program: site -> numbers at each point; at a point where it fails, none."""
    found: dict[str, list[list[float]]] = {}
    generator = torch.Generator().manual_seed(0)
    indices = tuple(
        torch.tensor(_spread(plate.size, plate.subsample_size), device=density.device)
        for plate in density.subsamples
    )
    for width in WIDTHS:
        unit = torch.rand(density.num_parameters, generator=generator, dtype=density.dtype)
        position = (width * (2 * unit - 1)).to(density.device)
        try:
            with torch.no_grad():
                run = density.run(position, indices, None, tensors)
        except (RuntimeError, ValueError):  # as a Cholesky factor may; chains start elsewhere
            continue
        for name, log_prob in run.log_probs.items():
            numbers = [float(log_prob)]
            if name in run.values:
                values = run.values[name].double()
                numbers += [float(values.mean()), float(values.abs().mean())]
            found.setdefault(name, []).append(numbers)
    return found


def _spread(size: int, count: int) -> list[int]:
    """Give `count` places at equal distances, the first and the last of `size` among them."""
    return [place * (size - 1) // max(1, count - 1) for place in range(count)]


def _other_program(
    asked: Mapping[str, list[list[float]]], stored: Mapping[str, Any], precision: float
) -> list[str]:
    """Say in what two programs differ: the first site that does; nothing if none does."""
    for name in dict.fromkeys([*asked, *stored]):
        now, then = asked.get(name, []), stored.get(name, [])
        if [len(numbers) for numbers in now] != [len(numbers) for numbers in then]:
            return [f"by another program (site {name!r} is in one of the two only)"]
        for numbers, before in zip(now, then, strict=True):
            for what, one, other in zip(EVALUATED, numbers, before, strict=False):
                if not _close(one, other, precision):
                    return [
                        f"by another program (at the same point, the {what} of site {name!r} is "
                        f"{one:.6g}, and was {other:.6g})"
                    ]
    return []


def _close(one: float, other: float, precision: float) -> bool:
    both_undefined = isnan(one) and isnan(other)
    return both_undefined or isclose(one, other, rel_tol=precision, abs_tol=precision)
