"""The settings that draws carry as attributes: whoever reads draws, all of them are as written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

# Whoever reads draws needs the first two.
NUMBERS = ("temperature", "thinning", "warmup_steps", "num_samples", "num_chains", "num_data")
# As JSON, where there are any.
TABLES = ("blocks", "failed_chains", "minibatches_of", "sites", "unvisited_modes")
# What was tuned, (C,) each -> what comes with it.
TOGETHER = {
    "tuned_excess_temperature": ("tolerance",),
    "tuned_stiffest_curvature": ("tuned_slowest_curvature", "tuned_gradient_noise"),
}


def settings(attributes: Mapping[Any, Any], *, of_all: bool = False) -> dict[str, Any]:
    """Take the attributes of draws, and hold them against what `fe.sample` writes.

    Args:
        attributes: of the tree.
        of_all: whether all must be there that some check needs, or only what every reader needs.
            Default False.

    Returns:
        The same, under texts.

    Raises:
        ValueError: one is missing, or of another form; it is named.

    Example:
        >>> settings({"thinning": 1, "temperature": 1.0})
        {'thinning': 1, 'temperature': 1.0}
    """
    found = {str(name): value for name, value in attributes.items()}
    by_chain = {name for name in found if name.startswith("tuned_")}
    besides = [other for name, others in TOGETHER.items() if name in found for other in others]
    for name in (*NUMBERS, *besides) if of_all else NUMBERS[:2]:
        if name not in found:
            raise missing(name)
    for name in found.keys() & {*NUMBERS, "tolerance"}:
        if np.shape(found[name]) or not _is_numeric(found[name]) or not np.isfinite(found[name]):
            raise _odd(name, found[name], "no number")
    for name in by_chain:
        found[name] = np.atleast_1d(found[name])  # netCDF keeps a list of one as a number
        count = int(found.get("num_chains", len(found[name])))
        if np.shape(found[name]) != (count,) or not _is_numeric(found[name]):
            raise _odd(name, attributes[name], f"not {count} numbers, one a chain")
    for name in found.keys() & {*TABLES}:
        try:
            is_table = isinstance(json.loads(found[name]), dict)
        except (ValueError, TypeError):
            is_table = False
        if not is_table:
            raise _odd(name, found[name], "no table in JSON")
    return found


def missing(name: str) -> ValueError:
    """Make the error of draws that lack something."""
    return ValueError(
        f"draws holds no {name}: only complete runs of fe.sample can be diagnosed; go on with one "
        "that was stopped by resume=True"
    )


def _is_numeric(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "iuf"


def _odd(name: str, value: Any, wrong: str) -> ValueError:
    return ValueError(
        f"draws has {name}={value!r:.60}, which is {wrong}: its attributes were changed since "
        "fe.sample wrote them"
    )
