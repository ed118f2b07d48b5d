"""How a call goes on with a run that one file keeps: only the call that began it, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ppl_fe.data.digests import data_digests
from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.files.kept_run import KeptRun, State
from ppl_fe.finetuning.objective import Batch, Objective, picked_rows
from ppl_fe.inference.run.identity import refuse_other_run
from ppl_fe.inference.run.interrupts import Interrupts
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.hashes import network_hash
from ppl_fe.ranks import refuse_differences
from ppl_fe.version import __version__

MOST_ROWS = 8  # that the likelihood is evaluated on


def facts_of(
    network: FlatNetwork,
    objective: Objective,
    sources: Mapping[str, TensorData | LoaderData],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Collect what a call that resumes a run must agree in with the one that began it.

    Of tensors it is their SHA-256; of a loader that of a batch from all over the data set, without
    what comes out differently each time it is read. A likelihood has no bytes to be compared: it is
    evaluated on some rows at the network's weights.

    Args:
        network: at its anchor.
        objective: has the likelihood.
        sources: what messages call the data -> them; the likelihood is evaluated on the first.
        settings: of the call; what JSON takes.
    """
    data = {"network": network_hash(network)}
    for name, source in sources.items():
        data |= data_digests(name, source)
    first = next(iter(sources.values()))
    rows = (first.inputs, first.targets) if isinstance(first, TensorData) else first.spread()
    facts = {
        "ppl_fe_version": __version__,
        "likelihood": getattr(objective.likelihood, "__name__", "an object"),
        **settings,
        "data": data,
        "program": _evaluated(network, objective, rows),
        "precision": torch.finfo(network.dtype).eps ** 0.5,
    }
    parsed: dict[str, Any] = json.loads(json.dumps(facts))  # as it will be read from a file
    return parsed


def _evaluated(network: FlatNetwork, objective: Objective, batch: Batch) -> dict[str, Any]:
    """Evaluate log p(y | x, w) of a datum, on average, at the network's weights."""

    def at_anchor(*inputs: Any, **by_name: Any) -> Any:
        return network(network.anchor, *inputs, *([by_name] if by_name else []))

    module: Any = at_anchor
    try:
        with torch.no_grad():
            loss, _ = objective(module, picked_rows(batch, MOST_ROWS))
    except (KeyError, RuntimeError, TypeError, ValueError):  # whoever checks the data says why
        return {}
    return {"y": [[-float(loss)]]}


def hold_to(kept: KeptRun | None, facts: dict[str, Any]) -> None:
    """Hold ranks to each other, and a call to the run that is kept, which must be its own.

    Args:
        kept: the run, which is kept under these facts from now on; None where none is.
        facts: of this call.

    Raises:
        ValueError: they differ; the message says in what.
    """
    refuse_differences(facts)
    if kept is None:
        return
    if kept.stopped is not None:
        refuse_other_run(kept.path, facts, kept.stopped[1]["facts"])
    kept.facts = facts


def between_steps(
    kept: KeptRun | None,
    interrupts: Interrupts,
    state: Callable[[], State],
    so_far: str,
    what: str,
) -> None:
    """Commit a run where it is time to, and when Ctrl-C ends it.

    Args:
        kept: where the run is kept, or None.
        interrupts: hold Ctrl-C back until here.
        state: gives what is to be kept.
        so_far: how far the run has come, in words.
        what: the run, in words.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the message says how to go on.
    """
    try:
        interrupts.check()
    except KeyboardInterrupt:
        if kept is None:
            raise KeyboardInterrupt(
                f"{what} was stopped after {so_far}, of which nothing is kept; with save_to= one "
                "can go on with them"
            ) from None
        kept.commit(state, so_far)
        raise kept.stop(what) from None
    if kept is not None and kept.is_due():
        kept.commit(state, so_far)
