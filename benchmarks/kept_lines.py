"""Results that are kept a line a record, so that a run may be stopped anywhere and gone on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The records of a results file, none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(records: Sequence[Record], path: Path) -> None:
    """Add records to a results file."""
    with path.open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in records)
