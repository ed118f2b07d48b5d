"""`ppl-fe diagnose`: can a saved run be believed?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_fe.cli.parser import Parser
from ppl_fe.cli.paths import require_path

if TYPE_CHECKING:
    import xarray as xr

DESCRIPTION = """
Check a saved run, or all runs in the folder of `ppl-fe rank --save-to`, each checkpoint of it
by itself.

Exit status 0: passed, 1: a check failed, 2: bad input.
"""


def parser() -> Parser:
    """Make the command's options."""
    diagnose = Parser(
        "diagnose",
        description=DESCRIPTION,
        duration="Seconds, of which most are the start.",
        example="ppl-fe diagnose run.zarr && echo passed",
    )
    diagnose.add_argument(
        "draws",
        metavar="PATH",
        help="zarr folder of fe.sample's save_to or netCDF file; or the folder of rank --save-to",
    )
    diagnose.add_argument(
        "--difference",
        type=float,
        metavar="NATS",
        help="of WBIC, between checkpoints to be told apart: its error has to be below a quarter "
        "of it; default no such check",
    )
    diagnose.add_argument(
        "--superchains",
        type=int,
        metavar="K",
        help="equal groups of chains that shared their start; default none",
    )
    diagnose.add_argument(
        "--group",
        type=int,
        help="which of several targets in one run, from 0; default each by itself",
    )
    return diagnose


def run(given: dict[str, Any]) -> int:
    """Print the verdicts; 1 if a check failed."""
    path = require_path("PATH", given.pop("draws"))
    from ppl_fe.diagnostics import diagnose

    passed = []
    for name, draws, group in _targets(path, given.pop("group", None)):
        verdict = diagnose(draws, group=group, **given)
        print(*([f"{name}:"] if name else []), verdict, sep="\n", end="\n\n" if name else "\n")
        passed.append(verdict.passed)
    if len(passed) > 1:
        print(f"{sum(passed)} of {len(passed)} passed")
    return 0 if all(passed) else 1


def _targets(path: Path, group: int | None) -> Iterator[tuple[str, xr.DataTree, int | None]]:
    """Give a name, the draws and the group of every target that is saved at a path."""
    from ppl_fe.diagnostics.run_data import open_draws
    from ppl_fe.free_energy.kept_ranking import ranked_names

    stores = _stores(path)
    for store in stores or [path]:
        draws = open_draws(store)
        count = int(draws.attrs.get("num_groups", 1))
        names = ranked_names(store) or [
            f"{store.name}, target {k} of {count}" for k in range(count)
        ]
        groups = range(count) if group is None and count > 1 else [group]
        for number in groups:
            several = bool(stores) or len(groups) > 1
            yield names[number or 0] if several else "", draws, number


def _stores(path: Path) -> list[Path]:
    """List the zarr folders within a folder that is none itself, as a ranking numbers them."""
    if not path.is_dir() or (path / "zarr.json").exists():
        return []
    found = [entry for entry in path.iterdir() if (entry / "zarr.json").exists()]
    return sorted(found, key=lambda entry: (len(entry.name), entry.name))
