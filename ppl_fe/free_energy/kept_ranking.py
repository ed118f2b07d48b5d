"""A ranking that a folder keeps: rows as they come, and the draws of the lot that is under way.

The file `table.json` names every lot of checkpoints that were or are to be run side by side, each
checkpoint with the SHA-256 of its weights and buffers, and has the rows of those that are done.
Lots keep their numbers, and so their seeds and their draws, whatever the call that goes on adds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ppl_fe.data.digests import data_digests
from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.files.atomic import atomic_write
from ppl_fe.files.kept_run import opened
from ppl_fe.files.lock import Lock
from ppl_fe.files.no_room import told_if_full
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.inference.record.zarr_store import is_stored
from ppl_fe.inference.run.identity import refuse_other_run
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.hashes import network_hash
from ppl_fe.ranks import are_several

TABLE = "table.json"
# What every checkpoint's row depends on, beside the data.
SETTINGS = (
    "localization",
    "inverse_temperature",
    "batch_size",
    "step_size",
    "tolerance",
    "num_chains",
    "chain_method",
    "seed",
)


class KeptRanking:
    """The folder of a ranking, locked until `close`.

    Args:
        path: of the folder, which must not exist unless the ranking is resumed.
        resume: go on with the ranking in it. Default False.

    Raises:
        BlockingIOError: another process is writing it.
        FileExistsError: `path` exists and is not to be resumed.
        FileNotFoundError: nothing to resume.
        OSError: the folder cannot be written to.
        ValueError: the table is damaged.
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        self._lots: list[dict[str, Any]] = []
        self._facts: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._lock = Lock(self.path)
        try:
            if resume:
                self._facts, self._lots = self._read()
            elif self.path.exists():
                raise FileExistsError(
                    f"save_to: {self.path} already exists; give a new folder, or go on with the "
                    "ranking in it by resume=True"
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write here; once is enough."""
        self._lock.release()

    def hold_to(self, facts: Mapping[str, Any]) -> None:
        """Keep the ranking under a call's facts, if it was begun by such a call.

        Raises:
            ValueError: it was not; the message says in what the two differ.
        """
        parsed = json.loads(json.dumps(facts))  # as it is read from the file
        if self._facts:
            refuse_other_run(self.path, parsed, self._facts)
        self._facts = parsed

    def of_lot(self, number: int, options: ChainOptions) -> ChainOptions:
        """Give a lot the place of its draws, from which it goes on if there are any."""
        folder = self._draws(number)
        resume = is_stored(folder)
        if not resume:  # it was interrupted and had lost a chain
            shutil.rmtree(folder, ignore_errors=True)
        return replace(options, save_to=folder, resume=resume)

    def take_up(
        self,
        networks: Mapping[str, FlatNetwork],
        divide: Callable[[Mapping[str, FlatNetwork]], Sequence[list[str]]],
    ) -> list[tuple[int, list[str]]]:
        """Give the lots that are still to be run: those begun before, then those of new networks.

        Args:
            networks: that are to be ranked, by name.
            divide: puts names into lots.
        """
        self._digests = {name: network_hash(network) for name, network in networks.items()}
        lots, left = [], dict(networks)
        for number, lot in enumerate(self._lots):
            members, rows = lot["members"], lot["rows"]
            same = {name for name in members if self._digests.get(name) == members[name]}
            if rows is None and len(same) < len(members):  # of others than are asked for now
                self._let_go(number)
                continue
            if rows is None:
                lots.append((number, list(members)))
            for name in same if rows is None else same & rows.keys():
                left.pop(name, None)
        return lots + self.add(divide(left))

    def finished(self) -> Iterator[tuple[str, Any]]:
        """Give the rows of those that are done and were asked for."""
        for lot in self._lots:
            for name, row in (lot["rows"] or {}).items():
                if self._digests.get(name) == lot["members"][name]:
                    yield name, dict(row)

    def add(self, lots: Sequence[list[str]]) -> list[tuple[int, list[str]]]:
        """Number lots that are to be run."""
        first = len(self._lots)
        for names in lots:
            members = {name: self._digests[name] for name in names}
            self._lots.append({"members": members, "rows": None})
        self._write()
        return list(enumerate(lots, first))

    def divide(self, number: int, halves: Sequence[list[str]]) -> list[tuple[int, list[str]]]:
        """Put halves in the place of a lot that failed."""
        self._let_go(number)
        return self.add(halves)

    def finish(self, number: int, rows: Mapping[str, Any]) -> None:
        """Keep the rows of a lot.

        Raises:
            OSError: the disk is full; what was kept before stays.
        """
        self._lots[number]["rows"] = {name: dict(row) for name, row in rows.items()}
        self._write()

    def stop(self) -> KeyboardInterrupt:
        """Say what Ctrl-C has ended."""
        return KeyboardInterrupt(
            f"the ranking was stopped after {self._so_far}, whose rows {self.path} keeps: the same "
            "call with resume=True goes on, also with more checkpoints"
        )

    @property
    def _so_far(self) -> str:
        done = sum(1 for _ in self.finished())
        return f"{done} of {len(self._digests)} checkpoints"

    def _draws(self, number: int) -> Path:
        return self.path / f"{number}.zarr"

    def _let_go(self, number: int) -> None:
        """Forget a lot and its draws, with which nothing goes on."""
        self._lots[number]["rows"] = {}
        folder = self._draws(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f"{folder.name}.resume").unlink(missing_ok=True)

    def _write(self) -> None:
        self.path.mkdir(exist_ok=True)
        table = json.dumps({"facts": self._facts, "lots": self._lots})
        text = json.dumps({"table": table, "sum": _sum(table)})
        with (
            told_if_full(self.path, lambda: f"the rows of {self._so_far} are"),
            atomic_write(self.path / TABLE, lone=True) as aside,
        ):
            aside.write_text(text, encoding="utf-8")

    def _read(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        file = self.path / TABLE
        if not file.exists():
            raise FileNotFoundError(
                f"resume=True: there is no ranking in {self.path}; leave resume out to begin it"
            )
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            if held["sum"] != _sum(held["table"]):
                raise ValueError("its checksum differs")
            found = json.loads(held["table"])
            return found["facts"], found["lots"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"resume=True: {file} is damaged ({error}); begin a new ranking"
            ) from error


def ranked_names(draws: Path) -> list[str]:
    """List the checkpoints of a lot that a ranking keeps, in the order of its draws' targets.

    Args:
        draws: the lot's folder of draws, within that of the ranking.

    Returns:
        The names; none where no ranking keeps them.
    """
    file = draws.parent / TABLE
    if not file.exists() or not draws.stem.isdigit():
        return []
    try:
        lots = json.loads(json.loads(file.read_text(encoding="utf-8"))["table"])["lots"]
        return [str(name) for name in lots[int(draws.stem)]["members"]]
    except (ValueError, TypeError, KeyError, IndexError):  # damaged: the draws may be whole
        return []


def facts_of(
    template: FlatNetwork,
    source: TensorData | LoaderData,
    held_out: TensorData | LoaderData | None,
    options: ChainOptions,
) -> dict[str, Any]:
    """Collect what a call that goes on with a ranking must agree in with the one that began it.

    Args:
        template: the architecture; its own weights do not matter.
        source: the data.
        held_out: other data, or None.
        options: of the chains.
    """
    settings = {name: getattr(options, name) for name in SETTINGS}
    settings["kernel"] = getattr(options.kernel, "__name__", str(options.kernel))
    settings["length"] = None if options.length is None else vars(options.length)
    likelihood = options.likelihood
    settings["likelihood"] = getattr(likelihood, "__name__", str(likelihood))
    data = data_digests("data", source)
    data |= {} if held_out is None else data_digests("held_out", held_out)
    precision = torch.finfo(template.dtype).eps ** 0.5
    return {**settings, "data": data, "program": {}, "precision": precision}


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def kept_ranking(
    save_to: str | Path | None, *, resume: bool
) -> AbstractContextManager[KeptRanking | None]:
    """Open the folder of a ranking for as long as the block lasts; None where none is asked for.

    Raises:
        ValueError: `resume` without a folder; several ranks, which all would write it; and what
            `KeptRanking` raises.
    """
    if save_to is not None and are_several():
        raise ValueError(
            "save_to keeps a ranking that one process runs, and here torch.distributed has several "
            "ranks: estimate each checkpoint by estimate_free_energy(..., save_to=...)"
        )
    return opened(save_to, "ranking", lambda path: KeptRanking(path, resume=resume), resume=resume)
