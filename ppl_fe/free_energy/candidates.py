"""Checkpoints to be ranked: names for them, and which of them the data can be put through.

Whatever a checkpoint raises becomes the error of its row. What every one of them raises, and the
module with its own weights as well, is a fault of the call, and is raised.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.diverged import DivergedError
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.free_energy.local_chains import (
    NOT_FINITE,
    FreshHead,
    check_data,
    data_loss,
    first_rows,
    program_and_kernel,
)
from ppl_fe.networks.checkpoints import read_checkpoint
from ppl_fe.networks.flat import FlatNetwork

Checkpoint = str | Path | Mapping[str, Tensor]
Source = TensorData | LoaderData

MOST_TRIED = 256  # rows that every checkpoint is tried on before any chain runs


def named_checkpoints(
    checkpoints: Mapping[str, Checkpoint] | Iterable[Checkpoint],
) -> dict[str, Checkpoint]:
    """Give checkpoints by their names; those of a plain list are called by path or by place.

    Raises:
        TypeError: one checkpoint instead of several.
        ValueError: none, or one name for two.

    Example:
        >>> list(named_checkpoints(["runs/a.pt", {"weight": Tensor([1.0])}]))
        ['runs/a.pt', 'checkpoint 1']
    """
    if isinstance(checkpoints, str | os.PathLike):
        raise TypeError(
            f"checkpoints must be several, got the path {os.fspath(checkpoints)!r}; give name -> "
            "file, or a list such as sorted(Path('runs').glob('*.pt'))"
        )
    if isinstance(checkpoints, nn.Module) or not isinstance(checkpoints, Iterable):
        raise TypeError(
            f"checkpoints must be a mapping or a list of files, folders or state dicts, got "
            f"{type(checkpoints).__name__}"
        )
    if isinstance(checkpoints, Mapping):
        named = dict(checkpoints)
        if named and all(isinstance(value, Tensor) for value in named.values()):
            raise TypeError(
                "checkpoints is a single state dict; give {'name': state_dict}, one a checkpoint"
            )
    else:
        named = {}
        for place, checkpoint in enumerate(checkpoints):
            name = f"checkpoint {place}"
            if isinstance(checkpoint, str | os.PathLike):
                name = os.fspath(checkpoint)
            if name in named:
                raise ValueError(
                    f"checkpoints holds {name!r} twice; leave one out, or give a mapping of names"
                )
            named[name] = checkpoint
    if not named:
        raise ValueError("checkpoints is empty: give at least one name -> file or state dict")
    return named


def in_words(error: Exception) -> str:
    """Put an exception into a row: of ours the message, of others their kind as well.

    Example:
        >>> in_words(MemoryError()), in_words(RuntimeError("CUDA out of memory\\nat line 3"))
        ('MemoryError', 'RuntimeError: CUDA out of memory')
    """
    if isinstance(error, ValueError | OSError | DivergedError) and str(error):
        return str(error)
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


@dataclass(frozen=True)
class Trial:
    """The first rows of the data, through which every checkpoint has to come.

    Attributes:
        source: the data.
        held_out: other data that losses are wanted of, or None.
        options: of the chains.
        head: the fresh head, whose tensors checkpoints need not have, or None.
    """

    source: Source
    held_out: Source | None
    options: ChainOptions
    head: FreshHead | None = None

    def come_through(
        self, template: FlatNetwork, checkpoints: Mapping[str, Checkpoint]
    ) -> tuple[dict[str, FlatNetwork], dict[str, str]]:
        """Read the checkpoints and try each; give the networks that came through, and errors.

        Raises:
            TypeError, ValueError: no checkpoint came through, nor does the module with its own
                weights.
        """
        sources = {"data": self.source, "held_out": self.held_out}
        rows = {what: first_rows(source) for what, source in sources.items() if source is not None}
        networks: dict[str, FlatNetwork] = {}
        errors: dict[str, str] = {}
        fresh = template.head_names(None if self.head is None else self.head.name)
        for name, checkpoint in checkpoints.items():
            try:
                network = template.with_state(read_checkpoint(checkpoint), fresh)
                self._put_through(network, rows)
            except Exception as error:  # a file, a tensor or a forward pass can end in any
                errors[name] = in_words(error)
            else:
                networks[name] = network
        if not networks:
            with suppress(DivergedError):  # its own weights do not matter
                self._put_through(template, rows)
        return networks, errors

    def _put_through(self, network: FlatNetwork, rows: Mapping[str, tuple[Any, Tensor]]) -> None:
        """Take the loss of some rows.

        Raises:
            DivergedError: that of the data is not finite.
        """
        program, _ = program_and_kernel(network, self.source, self.options, self.head)
        vectorized = self.options.chain_method != "sequential"
        for what, own in rows.items():
            check_data(program, network, *own, what)
            inputs, targets = pytree.tree_map(lambda values: values[:MOST_TRIED], own)
            some = TensorData(inputs, targets, len(targets))
            anchors = program.center(network.anchor[None])
            loss = float(data_loss(program, anchors, some, vectorized=vectorized))
            if what == "data" and not isfinite(loss):
                first = f"the first {len(targets)} rows"
                raise DivergedError(f"L(w*) is {loss} over {first}: {NOT_FINITE}")


def add_columns(rows: dict[str, dict[str, Any]], columns: Mapping[str, dict[str, Any]]) -> None:
    """Add columns to the rows of a table, by name; notes and errors are joined."""
    for name, new in columns.items():
        for kind in ("note", "error"):
            texts = [rows[name].get(kind, ""), new.pop(kind, "")]
            rows[name][kind] = "; ".join(filter(None, texts))
        rows[name] |= new
