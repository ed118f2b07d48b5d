"""One safetensors file of the project's own: written whole or not at all, refused if damaged.

Beside its tensors a file holds its format's name, a JSON text about them, and the SHA-256 of both,
so that a single changed byte is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ppl_fe.files.atomic import atomic_write
from ppl_fe.files.digest import digest
from ppl_fe.files.no_room import named

Result = TypeVar("Result")
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# What reading a field raises that is missing or of another type than was written.
MALFORMED = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


def write_checked(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    file_format: str,
    *,
    lone: bool = False,
) -> None:
    """Write aside and rename, so that an interrupted write leaves the old file.

    Args:
        path: the file, replaced if it exists.
        tensors: of any shapes and devices.
        about: what JSON takes.
        file_format: name and version of the format.
        lone: no other process writes this file, as in `atomic_write`. Default False.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checked(f"{folder}/a", {"x": torch.ones(1)}, {"n": 2}, "example 1")
        ...     read_checked(f"{folder}/a", "example 1", "example", ValueError)
        ({'x': tensor([1.])}, {'n': 2})
    """
    path = Path(path)
    held = _apart(tensors)
    written = json.dumps(about)
    metadata = {"format": file_format, "about": written, "content": _sum(held, written)}
    with atomic_write(path, lone=lone) as aside, named(path):
        _write(held, aside, metadata)


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
    except (SafetensorError, *MALFORMED) as damage:  # a dtype that torch lacks is a KeyError
        raise error(f"{path} is damaged, or no safetensors file: {damage}") from damage
    if metadata.get("format") != file_format:
        raise error(
            f"{path} is no {kind} file that this version reads: its format is "
            f"{metadata.get('format')!r}, not {file_format!r}"
        )
    written = metadata.get("about", "")
    if _sum(tensors, written) != metadata.get("content"):
        raise error(f"{path} is damaged: its content is not what was written; fetch it again")
    about: dict[str, Any] = parsed(path, kind, error, lambda: dict(json.loads(written)))
    return tensors, about


def parsed(
    path: str | os.PathLike[str], kind: str, error: type[ValueError], build: Callable[[], Result]
) -> Result:
    """Give what `build` makes of a file's fields, or the one error of a damaged file.

    Args:
        path: the file that is read.
        kind: what error messages call such a file, "delta" say.
        error: class of the errors about its content; those that `build` raises stay as they are.
        build: reads the fields; raises anything where one is missing or of another form.

    Example:
        >>> parsed("task.safetensors", "delta", ValueError, lambda: {}["shapes"])
        Traceback (most recent call last):
        ValueError: task.safetensors is damaged, or no delta: KeyError: 'shapes'
    """
    try:
        return build()
    except error:
        raise
    except MALFORMED as wrong:
        found = f"{type(wrong).__name__}: {wrong}"
        raise error(f"{path} is damaged, or no {kind}: {found}") from wrong


def text(value: object) -> str:
    """Give a field that has to be a text.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def sizes(value: object) -> tuple[int, ...]:
    """Give a field that has to be a tensor's shape.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        raise TypeError(f"{value!r:.40} is no shape")
    return tuple(value)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Lay tensors out in memory of their own: safetensors refuses views of one vector."""
    held, taken = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage()
        if memory.nbytes() != value.nbytes or memory.data_ptr() in taken:
            value = value.clone()
        taken.add(value.untyped_storage().data_ptr())
        held[name] = value
    return held


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors that lie apart.

    The library writes to a file of a name of its own, which stays where the process is killed, or
    else makes a copy of all tensors in memory, which may be as large as the run itself.

    Raises:
        TypeError: a tensor of a type that the format has not.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # all aligned
    header, end = dict[str, Any](__metadata__=metadata), 0
    for name in names:
        kind, shape = tensors[name].dtype, list(tensors[name].shape)
        if kind not in TYPES:
            raise TypeError(f"{name} is of {kind}, which safetensors has not")
        begin, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": TYPES[kind], "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            file.write(tensors[name].reshape(-1).view(torch.uint8).numpy().data)


def _sum(tensors: Mapping[str, Tensor], about: str) -> str:
    return hashlib.sha256((digest(tensors) + about).encode()).hexdigest()
