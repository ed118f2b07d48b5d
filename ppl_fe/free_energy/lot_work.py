"""What is done with a lot of checkpoints: all draws, a pilot and more draws after it, ladders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.free_energy.candidates import in_words
from ppl_fe.free_energy.chain_options import USUAL_BATCH, ChainOptions
from ppl_fe.free_energy.contenders import GoingOn, Heat
from ppl_fe.free_energy.estimators import summarize_group
from ppl_fe.free_energy.ladders import Climbed, Ladders
from ppl_fe.free_energy.local_chains import (
    FreshHead,
    held_out_loss,
    passes_of,
    sample_local_posteriors,
)
from ppl_fe.free_energy.lots import anchors_of
from ppl_fe.free_energy.ranking_rows import row_of
from ppl_fe.inference.run.stages import Stage
from ppl_fe.inference.step.builder import BuiltSteps
from ppl_fe.networks.flat import FlatNetwork

Rows = dict[str, dict[str, Any]]


class Materials(NamedTuple):
    """What a lot is run on.

    template: the architecture. networks: of the checkpoints, which share their buffers. source: the
    data. steps: what lots before have built. held_out: other data that losses are wanted of, or
    None. head: the fresh head, or None. whole: what Ctrl-C has cut short is no result.
    """

    template: FlatNetwork
    networks: Mapping[str, FlatNetwork]
    source: TensorData | LoaderData
    steps: BuiltSteps
    held_out: TensorData | LoaderData | None = None
    head: FreshHead | None = None
    whole: bool = False

    def refuse_part(self, interrupted: object) -> None:
        """Go on with Ctrl-C after a run that gave what it had, where only what is whole counts.

        Args:
            interrupted: whether the run was; what it drew is kept, if it keeps any.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        if self.whole and interrupted:
            raise KeyboardInterrupt


class Pilot(NamedTuple):
    """A heat after its pilot, and the held-out losses of its checkpoints."""

    heat: Heat
    losses: dict[str, float]


def all_draws(given: Materials, own: ChainOptions) -> Rows:
    """Run the chains of a lot until they are done; give the columns of each checkpoint.

    Args:
        given: the lot.
        own: its options.

    Raises:
        KeyboardInterrupt: Ctrl-C, where only what is whole counts.
    """
    losses = _held_out_losses(given, own)
    shared = next(iter(given.networks.values()))
    anchors = anchors_of(given.networks.values())
    chains = sample_local_posteriors(shared, anchors, given.source, own, steps=given.steps)
    given.refuse_part(chains.draws.attrs["interrupted"])
    found: Rows = {}
    for group, name in enumerate(given.networks):
        try:
            estimate = summarize_group(chains, group)
        except Exception as error:
            found[name] = {"error": in_words(error)}
        else:
            found[name] = row_of(estimate, passes_of(chains), losses.get(name))
    return found


def pilot(given: Materials, own: ChainOptions, shelf: Path | None) -> dict[str, Pilot]:
    """Run the pilot of a lot; give it for each checkpoint.

    Args:
        given: the lot.
        own: its options.
        shelf: the file for where its chains stand; None to leave them in memory.

    Raises:
        KeyboardInterrupt: Ctrl-C, where only what is whole counts.
    """
    losses = _held_out_losses(given, own)
    heat = Heat(given.networks, given.source, own, shelf, given.steps)
    given.refuse_part(heat.interrupted)
    return dict.fromkeys(given.networks, Pilot(heat, losses))


def more_draws(given: Materials, own: ChainOptions, going: GoingOn) -> Stage:
    """Draw more from some of the checkpoints of a heat.

    Args:
        given: its lot.
        own: the options of that.
        going: who goes on, and how far.

    Raises:
        KeyboardInterrupt: Ctrl-C, where only what is whole counts.
    """
    stage = going.draw(given.networks, given.source, own)
    given.refuse_part(stage.interrupted)
    return stage


def ladders(
    given: Materials, own: ChainOptions, rungs: tuple[float, ...], head: FreshHead | None
) -> dict[str, Climbed]:
    """Integrate the free energy of each checkpoint of a lot.

    Args:
        given: the lot.
        own: its options.
        rungs: inverse temperatures of each ladder, above zero.
        head: the fresh head with the prior that it has on them, or None.

    Raises:
        DivergedError: a chain did not stay finite.
        KeyboardInterrupt: Ctrl-C, where only what is whole counts.
    """
    shared = next(iter(given.networks.values()))
    all_rungs = Ladders(shared, given.source, own, len(rungs), head, rungs, given.steps)
    climbed, draws = all_rungs.climb(anchors_of(given.networks.values()))
    given.refuse_part(draws.attrs["interrupted"])
    return dict(zip(given.networks, climbed, strict=True))


def _held_out_losses(given: Materials, options: ChainOptions) -> dict[str, float]:
    """Take the losses of networks that share their buffers, where there are such data.

    They come before the chains, as they are what may fail.
    """
    if given.held_out is None:
        return {}
    size = options.batch_size
    found = held_out_loss(
        next(iter(given.networks.values())),
        anchors_of(given.networks.values()),
        given.held_out,
        likelihood=options.likelihood,
        batch_size=USUAL_BATCH if size == "auto" else size,
    )
    return dict(zip(given.networks, found.tolist(), strict=True))
