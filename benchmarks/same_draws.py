"""Prove that two versions of the library make the same draws, bit for bit.

    python benchmarks/same_draws.py record before.json        # in a checkout of the one version
    python benchmarks/same_draws.py record after.json         # in one of the other
    python benchmarks/same_draws.py compare before.json after.json

`record` runs the cases of the folder `drawn` at fixed seeds on one thread and writes the
SHA-256 of every array that they give: its type, its shape and its bits. `compare` prints a line a
case, and its exit status is 1 unless all are the same. Both files have to come from one machine
and the same torch. `--only sgld_full ranking` takes some cases, the command `list` names them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
import xarray as xr
from drawn import Case, finetuning, networks, sampling
from torch import Tensor

import ppl_fe as fe

CASES: dict[str, Case] = {**sampling.CASES, **networks.CASES, **finetuning.CASES}
Hashes = dict[str, str]  # an array's name -> its SHA-256; or the one entry "error" -> its message
TIMES = ("time", "seconds")  # what attributes of wall-clock times end with


def named_arrays(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Take what a case gives apart into arrays, each under a dotted name."""
    if value is None:
        return
    if isinstance(value, xr.DataTree):
        for group, node in value.children.items():
            variables = node.to_dataset().variables
            yield from named_arrays({k: v.values for k, v in variables.items()}, f"{name}.{group}")
        yield from named_arrays(numbers(value.attrs), f"{name}.attrs")
    elif isinstance(value, pd.DataFrame):
        yield f"{name}.rows", np.array([str(row) for row in value.index])
        columns = {str(column): value[column] for column in value.columns}
        yield from named_arrays(numbers(columns), name)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from named_arrays(part, f"{name}.{key}")
    elif isinstance(value, Tensor):
        yield name, value.detach().cpu().numpy()
    else:
        yield name, np.asarray(value)


def numbers(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Keep what is numeric and no wall-clock time: words may change, and times do."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        array = np.asarray(value)
        if array.dtype == object:  # a column with gaps
            try:
                array = array.astype(np.float64)
            except (TypeError, ValueError):
                continue
        if array.dtype.kind in "biuf" and not str(name).endswith(TIMES):
            kept[str(name)] = array
    return kept


def digest(array: Any) -> str:
    """Hash an array's type, shape and bits."""
    values = np.asarray(array, order="C")
    if values.dtype.kind not in "biuf":  # words, which a store gives back as another type
        values = np.array([str(entry) for entry in values.ravel()]).reshape(values.shape)
    found = hashlib.sha256(f"{values.dtype.str} {values.shape} ".encode())
    found.update(values.tobytes())
    return found.hexdigest()


def hashes_of(case: Case) -> Hashes:
    """Run one case from a fresh random state; an error becomes its only entry."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)  # of torch, numpy and random
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # short warm-ups, and names that are on their way out
            return {name.lstrip("."): digest(array) for name, array in named_arrays(case())}
    except Exception as error:  # the other cases are still worth their hashes
        return {"error": f"{type(error).__name__}: {error}"}


def record(path: Path, only: Collection[str]) -> bool:
    """Run the cases and write their hashes; whether none ended in an error."""
    print(f"ppl_fe {fe.__version__} in {Path(fe.__file__).parent}", flush=True)
    found: dict[str, Hashes] = {}
    started = time.perf_counter()
    for name, case in CASES.items():
        if only and name not in only:
            continue
        before = time.perf_counter()
        found[name] = hashes_of(case)
        said = found[name].get("error", f"{len(found[name])} arrays")
        print(f"{name:28}{time.perf_counter() - before:6.1f} s  {said}", flush=True)
    made_by = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    path.write_text(
        json.dumps({"made_by": made_by, "cases": found}, indent=1, sort_keys=True) + "\n"
    )
    failed = sum("error" in hashes for hashes in found.values())
    print(
        f"{len(found)} cases, {sum(map(len, found.values()))} arrays, {failed} errors, "
        f"{time.perf_counter() - started:.0f} s"
    )
    return not failed


def difference(before: Hashes, after: Hashes) -> str:
    """Tell how a case differs, or "" where every array of the first is found in the second.

    An array under another name is the same array: names may change, bits may not.
    """
    if "error" in before or "error" in after:
        return f"error before: {before.get('error')}; after: {after.get('error')}"
    changed = [name for name in before if name in after and before[name] != after[name]]
    new = {value for name, value in after.items() if name not in before}
    gone = [name for name in before if name not in after and before[name] not in new]
    told = {"differs": changed, "lacks": gone}
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in told.items() if names)


def compare(first: Path, second: Path, only: Collection[str]) -> bool:
    """Print a line a case; whether all are the same."""
    one, other = (json.loads(path.read_text()) for path in (first, second))
    if one["made_by"] != other["made_by"]:
        print(f"not made alike, so that bits may differ: {one['made_by']}, {other['made_by']}")
    before, after = one["cases"], other["cases"]
    names = [name for name in {**before, **after} if not only or name in only]
    same = 0
    for name in names:
        if name not in before or name not in after:
            said = f"missing in {second if name in before else first}"
        else:
            said = difference(before[name], after[name])
        same += not said
        renamed = sum(array not in after.get(name, {}) for array in before.get(name, {}))
        more = f", {renamed} under other names" if renamed else ""
        print(f"{name:28}{said or f'same, {len(before[name])} arrays{more}'}")
    print(f"{same} of {len(names)} cases are the same")
    return same == len(names)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the cases")
    recording = commands.add_parser("record", help="run the cases and write their hashes")
    recording.add_argument("output", type=Path)
    comparing = commands.add_parser("compare", help="hold two records against each other")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    for command in (recording, comparing):
        command.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of cases")
    arguments = parser.parse_args()
    if arguments.command == "list":
        print("\n".join(CASES))
        return
    unknown = set(arguments.only) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; the command list names them")
    if arguments.command == "record":
        good = record(arguments.output, arguments.only)
    else:
        good = compare(arguments.first, arguments.second, arguments.only)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
