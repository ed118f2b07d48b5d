"""Tables as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ppl_fe.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd


def check_table_name(path: str) -> None:
    """Refuse a file name before hours are spent on what it is to hold.

    Raises:
        ValueError: it ends neither in .csv nor in .json.
    """
    if Path(path).suffix not in (".csv", ".json"):
        raise ValueError(f"--output must end in .csv or .json, got {path!r}")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write aside and rename, so that an interrupted write leaves the old file."""
    with atomic_write(path) as aside:
        if path.suffix == ".csv":
            table.to_csv(aside)
        else:
            table.to_json(aside, orient="index", indent=2)
