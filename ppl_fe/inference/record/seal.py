"""The seal of a stored run: the call that made it, the order of its sites, and sums of its files.

It is written last and broken before anything else is changed, so that a folder has a seal only as
long as it is as its run left it; a killed run has none. It lies in the folder of an array, where
zarr looks for chunks alone: of files that it does not know it warns elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from ppl_fe.files import atomic_write
from ppl_fe.files.syncing import sync

PLACE = "sample_stats/loss/seal.json"  # every run has this array
METADATA = "zarr.json"


class Seal(NamedTuple):
    """What a seal says.

    facts: of the call that made the run. order: group -> its variables. files: their SHA-256.
    """

    facts: dict[str, Any]
    order: dict[str, list[str]]
    files: dict[str, str]


def seal(folder: Path, facts: Mapping[str, Any], tree: xr.DataTree) -> None:
    """Seal a folder as it is.

    Args:
        folder: of the run.
        facts: of the call that made it; what JSON takes.
        tree: its draws, whose variables are in their order.
    """
    order = {name: list(node.data_vars) for name, node in tree.children.items()}
    files = {name: _sum(folder, name) for name in sorted(_files(folder, [*order]))}
    text = json.dumps({"facts": facts, "order": order, "files": files})
    with atomic_write(folder / PLACE, lone=True) as aside:
        aside.write_text(json.dumps({"seal": text, "sum": _sha(text.encode())}), encoding="utf-8")


def break_seal(folder: Path) -> None:
    """Remove the seal, if there is one: what follows changes the folder."""
    (folder / PLACE).unlink(missing_ok=True)
    sync([(folder / PLACE).parent])


def is_sealed(folder: Path) -> bool:
    """Whether there is a seal, be it right or not."""
    return (folder / PLACE).is_file()


def sealed(folder: Path) -> Seal | None:
    """Read a folder's seal, and hold the folder against it.

    Args:
        folder: of the run.

    Returns:
        The seal; None where there is none.

    Raises:
        ValueError: a file is gone, was changed or came in; it is named.
    """
    if not is_sealed(folder):
        return None
    try:
        held = json.loads((folder / PLACE).read_text(encoding="utf-8"))
        if held["sum"] != _sha(held["seal"].encode()):
            raise ValueError("its own checksum differs")
        found = Seal(**json.loads(held["seal"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{folder} is damaged: {PLACE}, which has the checksums of all its files, is not what "
            f"was written ({error}); take the folder from a copy, or sample again"
        ) from error
    now = _files(folder, [*found.order])
    for name, wanted in found.files.items():
        if name not in now:
            wrong = "is gone"
        elif _sum(folder, name) != wanted:
            wrong = "is not what the run wrote"
        else:
            continue
        raise _damaged(folder, name, wrong)
    for name in sorted(now - {*found.files}):
        raise _damaged(folder, name, "was not written by the run")
    return found


def _damaged(folder: Path, name: str, wrong: str) -> ValueError:
    return ValueError(
        f"{folder} is damaged: its file {name} {wrong}; take the folder from a copy, or sample "
        "again"
    )


def _files(folder: Path, groups: list[str]) -> set[str]:
    """List the files of a run: others may keep groups of their own beside its own, and notes."""
    own = [path for group in groups for path in (folder / group).rglob("*")]
    names = {path.relative_to(folder).as_posix() for path in own if path.is_file()}
    return {METADATA} | {name for name in names if name != PLACE and "/." not in name}


def _sum(folder: Path, name: str) -> str:
    """Sum up a file; of the root's metadata all but the copy of the others' that they hold."""
    try:
        content = (folder / name).read_bytes()
        if name == METADATA:  # whoever adds a group makes that copy anew
            said = json.loads(content)
            said.pop("consolidated_metadata", None)
            content = json.dumps(said, sort_keys=True).encode()
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return "unreadable"
    return _sha(content)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
