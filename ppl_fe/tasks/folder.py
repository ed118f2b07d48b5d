"""What all tasks of a call share, in a folder that each worker sees: written once, and mapped."""

from __future__ import annotations

import pickle
import shutil
import socket
import tempfile
import warnings
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import Tensor


class _Pickler(cloudpickle.Pickler):
    """Puts tensors aside, so that they can be mapped into memory instead of being copied."""

    def __init__(self, file: Any, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_id(self, thing: object) -> int | None:
        plain = type(thing) is Tensor and thing.layout is torch.strided
        if not plain or thing.device.type != "cpu" or thing.requires_grad:  # type: ignore[attr-defined]
            return None
        assert isinstance(thing, Tensor)
        self._tensors.append(thing)
        return len(self._tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, place: int) -> Tensor:
        return self._tensors[place]


class TaskFolder:
    """A folder for what tasks share, until `close`.

    Args:
        path: where; by default a new one among the system's temporary files. What is there from a
            call that was killed goes.

    Attributes:
        path: of the folder.

    Example:
        >>> folder = TaskFolder()
        >>> folder.put("data", {"x": torch.ones(2)})
        >>> taken(folder.path, "data")
        {'x': tensor([1., 1.])}
        >>> folder.close()
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            self.path = Path(tempfile.mkdtemp(prefix="ppl-fe-tasks-"))
            return
        self.path = path.absolute()
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)

    def put(self, name: str, value: object) -> None:
        """Write something that tasks take by its name.

        Args:
            name: that of the public call's argument.
            value: what cloudpickle takes, definitions of a notebook included.

        Raises:
            TypeError: it cannot be pickled.
        """
        tensors: list[Tensor] = []
        with (self.path / f"{name}.pickle").open("wb") as file:
            try:
                _Pickler(file, tensors).dump(value)
            except Exception as error:
                raise TypeError(
                    f"{name} cannot be pickled ({type(error).__name__}: {error}), and with "
                    "executor= or n_jobs= it goes to other processes; leave out of it what belongs "
                    "to this one (locks, open files, generators, connections), or define its class "
                    "at the top of a file"
                ) from error
        torch.save(tensors, self.path / f"{name}.pt")

    def close(self) -> None:
        """Remove the folder; who has mapped a file of it keeps that."""
        shutil.rmtree(self.path, ignore_errors=True)


def taken(folder: Path, name: str) -> Any:
    """Take in a worker what `TaskFolder.put` wrote.

    Args:
        folder: its path.
        name: of the thing.

    Raises:
        FileNotFoundError: the worker does not see the folder.
    """
    file = folder / f"{name}.pickle"
    if not file.exists():
        raise FileNotFoundError(
            f"a worker on {socket.gethostname()} does not see {folder}: workers of other machines "
            "need a folder that all of them share; give save_to there, or set TMPDIR to it before "
            "Python starts"
        )
    tensors = torch.load(folder / f"{name}.pt", mmap=True, weights_only=True)
    with file.open("rb") as opened, warnings.catch_warnings():
        # Of torch, about a way of its own to read trees of tensors.
        warnings.simplefilter("ignore", FutureWarning)
        return _Unpickler(opened, tensors).load()
