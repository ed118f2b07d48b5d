"""Where lots of checkpoints are run: in this process, or as tasks of an executor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ppl_fe.free_energy.candidates import Checkpoint, in_words
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.free_energy.local_chains import FreshHead
from ppl_fe.free_energy.lot_work import Materials
from ppl_fe.free_energy.lots import Lot
from ppl_fe.inference.step.builder import BuiltSteps
from ppl_fe.networks.checkpoints import read_checkpoint
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.tasks.folder import TaskFolder, taken
from ppl_fe.tasks.workers import Workers

Work = Callable[..., Any]  # of materials, options and more; importable by its name


class Errand(NamedTuple):
    """A lot, and what its work takes beside its materials and options."""

    lot: Lot
    more: tuple[Any, ...] = ()


class Here:
    """Run lots one after another in this process.

    Args:
        given: the networks of all lots, and the data.
    """

    def __init__(self, given: Materials) -> None:
        self._given = given
        self.tried: dict[str, str] = {}

    def shelf(self, number: int) -> Path | None:
        """Give the file for where the chains of a lot stand: none, they stay in memory."""
        return None

    def run(self, work: Work, errands: Sequence[Errand]) -> Iterator[tuple[Lot, Any]]:
        """Do the work on each lot; give what comes of it, or why nothing does."""
        given = self._given._replace(steps=self._given.steps.for_runs(len(errands)))
        for lot, more in errands:
            networks = {name: given.networks[name] for name in lot.names}
            try:
                found = work(given._replace(networks=networks), lot.own(), *more)
            except Exception as error:  # whatever one of them can raise
                found = error
            yield lot, found


class Elsewhere:
    """Run lots as tasks of workers, in whatever order these take them.

    Args:
        workers: that do them.
        folder: what they see.
        checkpoints: by name; those that are files each worker reads itself.
        progress: show one bar for all.

    Attributes:
        tried: name -> why it took more than one try, for those that did.
    """

    def __init__(
        self,
        workers: Workers,
        folder: TaskFolder,
        checkpoints: Mapping[str, Checkpoint],
        *,
        progress: bool,
    ) -> None:
        self._workers, self._folder, self._progress = workers, folder.path, progress
        self.tried: dict[str, str] = {}
        self._files: dict[str, str | int] = {}
        for place, (name, checkpoint) in enumerate(checkpoints.items()):
            if isinstance(checkpoint, str | os.PathLike):
                self._files[name] = os.path.abspath(checkpoint)
            else:
                folder.put(f"checkpoint {place}", checkpoint)
                self._files[name] = place

    def shelf(self, number: int) -> Path | None:
        """Give the file for where the chains of a lot stand after their pilot."""
        return self._folder / f"{number}.0.pt"

    def run(self, work: Work, errands: Sequence[Errand]) -> Iterator[tuple[Lot, Any]]:
        """Do the work on each lot; give what comes of it, or why nothing does, as it comes."""

        def record_of(place: int) -> tuple[Any, ...]:
            lot, more = errands[place]
            own = lot.own()
            where = None if own.save_to is None else os.path.abspath(own.save_to)
            # Likelihood and kernel, which may be the user's own, are in the folder.
            own = replace(own, likelihood="", kernel="auto", save_to=where, progress_bar=False)
            files = {name: self._files[name] for name in lot.names}
            return self._folder, work, files, own, more, len(errands)

        places = range(len(errands))
        for place, found, tries, before in self._workers.run(
            _at_a_worker, places, record_of, unit="lot", progress=self._progress
        ):
            lot = errands[place].lot
            if before is not None:
                said = f"took {tries} tries; the first ended by {in_words(before)}"
                self.tried |= dict.fromkeys(lot.names, said)
            yield lot, found


def _at_a_worker(
    folder: Path,
    work: Work,
    files: Mapping[str, str | int],
    own: ChainOptions,
    more: tuple[Any, ...],
    num_lots: int,
) -> Any:
    """Do the work on a lot, whose networks are made anew from its checkpoints.

    Its steps are compiled where they would be if one process ran all lots, for the same table.
    """
    own = replace(own, likelihood=taken(folder, "likelihood"), kernel=taken(folder, "kernel"))
    template: FlatNetwork = taken(folder, "module")
    head: FreshHead | None = taken(folder, "head")
    fresh = template.head_names(None if head is None else head.name)
    networks: dict[str, FlatNetwork] = {}
    for name, file in files.items():
        checkpoint = taken(folder, f"checkpoint {file}") if isinstance(file, int) else file
        networks[name] = template.with_state(read_checkpoint(checkpoint), fresh)
    source, held_out = taken(folder, "data"), taken(folder, "held_out")
    steps = BuiltSteps(num_lots)
    given = Materials(template, networks, source, steps, held_out, head, whole=True)
    return work(given, own, *more)


@contextmanager
def chosen_place(
    workers: Workers | None,
    given: Materials,
    checkpoints: Mapping[str, Checkpoint],
    options: ChainOptions,
) -> Iterator[Callable[[Mapping[str, FlatNetwork]], Here | Elsewhere]]:
    """Give what makes the place where lots run, of the networks that do, for as long as it lasts.

    What tasks share is written at once.

    Args:
        workers: that take tasks; None for this process.
        given: the architecture and the data.
        checkpoints: by name.
        options: of the chains.

    Raises:
        TypeError: the module, the data, the likelihood or the kernel cannot be pickled.
    """
    if workers is None:
        yield lambda networks: Here(given._replace(networks=networks))
        return
    folder = TaskFolder(None if options.save_to is None else Path(options.save_to) / "tasks")
    try:
        folder.put("module", given.template)
        folder.put("data", given.source)
        folder.put("held_out", given.held_out)
        folder.put("head", given.head)
        folder.put("likelihood", options.likelihood)
        folder.put("kernel", options.kernel)
        made = Elsewhere(workers, folder, checkpoints, progress=options.progress_bar)
        yield lambda networks: made
    finally:
        folder.close()
