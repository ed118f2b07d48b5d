"""The file that a run goes on from: its state after the last commit, replaced at every one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ppl_fe.files.safetensors_io import read_checked, write_checked
from ppl_fe.files.syncing import sync

COMMIT_SHARE = 0.1  # of the time of a run that its commits may take


def in_one(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Put the tensors of several parts side by side, as "part:name", or "name" of the part "".

    Example:
        >>> list(in_one({"chains": {"position": Tensor()}, "": {"count": Tensor()}}))
        ['chains:position', 'count']
    """
    return {
        f"{part}:{name}" if part else name: tensor
        for part, own in parts.items()
        for name, tensor in own.items()
    }


def in_parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Take apart what `in_one` has put side by side; parts without tensors are not there.

    Example:
        >>> [*in_parts({"chains:position": Tensor(), "count": Tensor()})]
        ['chains', '']
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, colon, name = key.partition(":")
        parts.setdefault(part if colon else "", {})[name if colon else part] = tensor
    return parts


class StateFile:
    """Tensors and facts as safetensors, written aside and renamed.

    Args:
        path: of the file. One process writes it.
        file_format: name and version of what it holds.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = StateFile(Path(folder) / "run.resume", "example 1")
        ...     file.write({"x": torch.ones(1)}, {"step": 3})
        ...     file.read()
        ({'x': tensor([1.])}, {'step': 3})
    """

    def __init__(self, path: Path, file_format: str) -> None:
        self.path, self._format = path, file_format
        self._written, self._took = time.monotonic(), 0.0

    def exists(self) -> bool:
        """Whether there is a state to go on from."""
        return self.path.exists()

    def is_due(self) -> bool:
        """Whether to write again: no more than a tenth of the time goes into it."""
        return time.monotonic() - self._written >= self._took / COMMIT_SHARE

    def write(
        self, state: Mapping[str, Tensor], about: Mapping[str, Any], after: Iterable[Path] = ()
    ) -> None:
        """Replace the state; when this returns, it is on the disk.

        Args:
            state: tensors of any shapes and devices.
            about: what JSON takes.
            after: what it counts on: files and folders, which are on the disk before. Default none.
        """
        begun = time.monotonic()
        sync(after)
        write_checked(self.path, state, about, self._format, lone=True)
        self._written = time.monotonic()
        self._took = self._written - begun

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the last state.

        Raises:
            ValueError: the file is damaged, or of another version.
        """
        return read_checked(self.path, self._format, "resume", ValueError)

    def remove(self) -> None:
        """Remove it, and what a killed process left beside it."""
        self.path.unlink(missing_ok=True)
        self.path.with_name(f"{self.path.name}.partial").unlink(missing_ok=True)
        sync([self.path.parent])
