"""One safetensors file of the project's own: written whole or not at all, refused if damaged.

Beside its tensors a file holds its format's name, a JSON text about them, and the SHA-256 of both,
so that a single changed byte is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ppl_fe.files import atomic_write
from ppl_fe.networks.hashes import base_hash


def write_checked(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    file_format: str,
) -> None:
    """Write aside and rename, so that an interrupted write leaves the old file.

    Args:
        path: the file, replaced if it exists.
        tensors: of any shapes and devices.
        about: what JSON takes.
        file_format: name and version of the format.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checked(f"{folder}/a", {"x": torch.ones(1)}, {"n": 2}, "example 1")
        ...     read_checked(f"{folder}/a", "example 1", "example", ValueError)
        ({'x': tensor([1.])}, {'n': 2})
    """
    path = Path(path)
    # Cloned: safetensors refuses tensors that share memory, as views of one vector do.
    held = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    text = json.dumps(about)
    metadata = {"format": file_format, "about": text, "content": _sum(held, text)}
    with atomic_write(path) as aside:
        save_file(held, aside, metadata)


def read_checked(
    path: str | os.PathLike[str], file_format: str, kind: str, error: type[ValueError]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_checked` wrote; no code in it can run.

    Args:
        path: the file.
        file_format: the one format to accept.
        kind: what error messages call such a file, for example "delta".
        error: class of the errors about its content.

    Returns:
        The tensors, on the CPU, and the JSON text about them, parsed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `error`; damaged, truncated, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as damage:
        raise error(f"{path} is damaged, or no safetensors file: {damage}") from damage
    if metadata.get("format") != file_format:
        raise error(
            f"{path} is no {kind} file that this version reads: its format is "
            f"{metadata.get('format')!r}, not {file_format!r}"
        )
    text = metadata.get("about", "")
    if _sum(tensors, text) != metadata.get("content"):
        raise error(f"{path} is damaged: its content is not what was written; fetch it again")
    about: dict[str, Any] = json.loads(text)
    return tensors, about


def _sum(tensors: Mapping[str, Tensor], text: str) -> str:
    return hashlib.sha256((base_hash(tensors) + text).encode()).hexdigest()
