"""Checkpoint files to state dicts and vectors, without running code from them."""

from __future__ import annotations

import errno
import json
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppl_fe.arguments import named_arguments
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.hub_names import ADAPTER_FILES, MERGE_ADAPTER
from ppl_fe.networks.matching import CheckpointError, is_counter, listed, match_state

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
SUMMED_AT_ONCE = 2**24  # bytes of a record of torch.save
DIRECTORY = 0x10  # among the attributes of a record in a zip file
MAX_SAFETENSORS_HEADER = 100_000_000  # the format's own limit, in bytes
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# What torch's safe unpickler says when it meets an object that only code could rebuild.
CODE_REFUSED = re.compile(r"GLOBAL|Trying to (call|load)|Can only (build|create)")
UNREADABLE_PROTOCOL = "Unsupported operand"  # likewise, of an opcode it does not know


@named_arguments
def read_checkpoint(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
) -> dict[str, Tensor]:
    """Read a checkpoint's tensors under the names it gives them.

    The content decides how a file is read, not its suffix: safetensors, or what ``torch.save``
    wrote, read with ``weights_only=True`` so that no code in it runs. A dictionary wrapped under
    ``state_dict`` (Lightning), ``model_state_dict``, ``model`` or ``module`` is unwrapped, in
    that order, and so is one under any other single name; entries that are no tensors (epochs,
    optimisers) are left out. Prefixes of names,
    as Lightning, ``DataParallel`` and ``torch.compile`` add them, are kept here: only against a
    network can ``load_checkpoint`` and ``FlatNetwork.with_state`` tell them from a name.

    Args:
        path_or_state_dict: a file, a Hugging Face folder (whole or in shards), or a state dict.

    Returns:
        Name -> tensor, detached, on the CPU when read from files; a mapping's tensors are not
        copied.

    Raises:
        TypeError: neither a path nor a mapping.
        FileNotFoundError: there is nothing at the path.
        CheckpointError: the file is empty, damaged, no checkpoint, without tensors, or a pickle
            that would run code; or the folder has no weights, or an index that leads outside it.

    Example:
        >>> read_checkpoint({"state_dict": {"weight": torch.ones(2)}, "epoch": 3})
        {'weight': tensor([1., 1.])}
    """
    if isinstance(path_or_state_dict, Mapping):
        return _tensors(path_or_state_dict, "the state dict")
    if not isinstance(path_or_state_dict, str | os.PathLike):
        kind = type(path_or_state_dict).__name__
        module = "; give module.state_dict()" if hasattr(path_or_state_dict, "state_dict") else ""
        raise TypeError(
            f"a checkpoint must be a file, a folder or a state dict, got {kind}{module}"
        )
    path = Path(path_or_state_dict)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    return _read_folder(path) if path.is_dir() else _read_file(path)


@named_arguments
def load_checkpoint(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any], network: FlatNetwork
) -> Tensor:
    """Give a checkpoint as a parameter vector of the network; nothing is changed in place.

    Names and shapes must fit exactly, up to a prefix common to all names, absent duplicates of
    tied weights, and absent integer counters. What the network keeps fixed, its buffers and the
    parameters outside its vector, must equal the checkpoint's: with the statistics of another
    checkpoint the vector would be another function. Where they differ, take
    ``network.with_state(read_checkpoint(path))``, whose anchor is the vector.

    Args:
        path_or_state_dict: as for ``read_checkpoint``.
        network: the network whose order of parameters, dtype and device the vector has.

    Returns:
        (D,) a new vector.

    Raises:
        CheckpointError: unreadable, or misfits; all missing, unexpected, misshaped and non-finite
            tensors are named in one message.
        FileNotFoundError: there is nothing at the path.

    Example:
        >>> network = FlatNetwork(torch.nn.Linear(2, 1))
        >>> state = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}
        >>> load_checkpoint(state, network)
        tensor([1., 2., 3.])
    """
    given = isinstance(path_or_state_dict, Mapping)
    source = "the state dict" if given else f"the checkpoint {path_or_state_dict}"
    matched = match_state(network.module, read_checkpoint(path_or_state_dict), source)
    fixed = dict(network.module.named_parameters()) | dict(network.module.named_buffers())
    differing = [
        name
        for name, entry in matched.items()
        if name not in network.slices
        and not is_counter(entry)
        and not torch.equal(entry, fixed[name])
    ]
    if differing:
        raise CheckpointError(
            f"the network's buffers (or parameters outside its vector) are not those of {source}: "
            f"{listed(differing)}; use network.with_state(read_checkpoint(path)) and its anchor"
        )
    return network.flatten({name: matched[name] for name in network.names})


def _tensors(content: object, source: str) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{source} holds a {type(content).__name__}, no dictionary of tensors; "
            "save module.state_dict()"
        )
    try:
        tensors = _unwrap(content, source)
    except RecursionError:
        raise CheckpointError(f"{source} nests dictionaries without end") from None
    if not tensors:
        keys = listed([repr(key) for key in content])
        raise CheckpointError(f"{source} holds no tensors, only: {keys or 'nothing at all'}")
    return tensors


def _unwrap(content: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    inner = (content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping))
    for found in inner:
        tensors = _unwrap(found, source)
        if tensors:
            return tensors
    own = _entries(content)
    if own:
        return own
    # {"net": {...}}: whatever it is called, if it is the only one.
    below = [
        key for key, value in content.items() if isinstance(value, Mapping) and _entries(value)
    ]
    if len(below) > 1:
        names = listed([repr(key) for key in below])
        raise CheckpointError(
            f"{source} holds several dictionaries of tensors: {names}; give one of them"
        )
    return _entries(content[below[0]]) if below else {}


def _entries(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        name: value.detach()
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _read_file(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty")
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file opens with the length of its header, 8 bytes, and the header's brace.
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_SAFETENSORS_HEADER:
        try:
            return _tensors(load_file(path), str(path))
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is a damaged or truncated safetensors file: {error}"
            ) from error
    if start.startswith(b"PK"):
        return _read_torch(path, "a damaged or truncated torch file, or a zip file of another kind")
    if start.startswith(b"\x80"):
        return _read_torch(path, "a damaged or truncated pickle, or torch.save did not write it")
    raise CheckpointError(f"{path} is no checkpoint: neither safetensors nor written by torch.save")


def _read_torch(path: Path, otherwise: str) -> dict[str, Tensor]:
    try:
        # An open file, not its name: torch would go by a suffix .safetensors. What it warns of,
        # pickle protocols that it may not read safely, ends in the error below if it matters.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            _check_sums(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged stream can end in any error whatever
        if _refused_code(error, path):
            raise CheckpointError(
                f"{path} was refused because reading it would run code: it pickles objects other "
                "than tensors; save module.state_dict() alone, best as safetensors"
            ) from error
        if UNREADABLE_PROTOCOL in str(error):
            otherwise += "; or of a pickle protocol without a safe reader: save with the default"
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read, it is {otherwise} ({type(error).__name__}: {first_line})"
        ) from error
    return _tensors(content, str(path))


def _check_sums(file: BinaryIO) -> None:
    """Hold the records of a zip file against their sums, which torch does not look at.

    Raises:
        BadZipFile: a record is not what was written; or what else a damaged file ends in.
    """
    start = file.read(2)
    file.seek(0)
    if start != b"PK":
        return
    try:
        with zipfile.ZipFile(file) as records:
            for record in records.infolist():
                if record.external_attr & DIRECTORY:  # torch would leave its tensor unwritten
                    raise zipfile.BadZipFile(f"{record.filename!r} is marked as a folder")
                if record.CRC:  # torch can be told to write none
                    with records.open(record) as content:
                        while content.read(SUMMED_AT_ONCE):
                            pass
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise zipfile.BadZipFile("a record begins before the file does") from error
    file.seek(0)


def _refused_code(error: Exception, path: Path) -> bool:
    """Say whether torch's safe reader refused objects rather than met damage."""
    message = str(error)
    if not isinstance(error, pickle.UnpicklingError):
        return "TorchScript" in message
    if UNREADABLE_PROTOCOL not in message:
        return CODE_REFUSED.search(message) is not None
    # Pickles of protocol 4 and later stop torch before it comes to names: look for them here.
    with path.open("rb") as file:
        try:
            return any("GLOBAL" in opcode.name for opcode, _, _ in pickletools.genops(file))
        except ValueError:
            return False


def _read_folder(folder: Path) -> dict[str, Tensor]:
    for name in FOLDER_FILES:
        path = folder / name
        if path.is_file():
            return _read_shards(path) if path.suffix == ".json" else _read_file(path)
    if any((folder / name).exists() for name in ADAPTER_FILES):
        raise CheckpointError(f"the folder {folder} holds {MERGE_ADAPTER}")
    raise CheckpointError(
        f"the folder {folder} holds no weights: none of {', '.join(FOLDER_FILES)}"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shard_of = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of shards with a weight_map") from error
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shard_of.values())):
        # A name, not a path: symbolic links are left alone, the Hugging Face cache is made of them.
        if shard in {"", ".", ".."} or "/" in shard or "\\" in shard:
            raise CheckpointError(
                f"{index} names the shard {shard!r}, which leads out of the folder"
            )
        path = index.parent / shard
        if not path.is_file():
            raise CheckpointError(f"{index} names the shard {shard}, which the folder lacks")
        held = _read_file(path)
        wanted = [name for name, of in shard_of.items() if of == shard]
        absent = [name for name in wanted if name not in held]
        if absent:
            raise CheckpointError(f"{path} lacks tensors that {index.name} names: {listed(absent)}")
        tensors |= {name: held[name] for name in wanted}
    if not tensors:
        raise CheckpointError(f"{index} names no tensors")
    return tensors
