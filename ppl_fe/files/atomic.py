"""Write a file beside its place, and rename it once it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppl_fe.files.syncing import sync


@contextmanager
def atomic_write(path: Path, *, lone: bool = False) -> Iterator[Path]:
    """Give a path beside `path` to write to, and rename it to `path` at the end of the block.

    Whatever ends the block early leaves an older file as it was, and nothing beside it. After the
    block the new file is there whole, also after a power cut.

    Args:
        path: the file, replaced if it exists.
        lone: no other process writes this file, so that the name beside it can always be the same,
            and what a killed process leaves there is overwritten by the next.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "a.txt") as aside:
        ...         _ = aside.write_text("whole")
        ...     [(file.name, file.read_text()) for file in Path(folder).iterdir()]
        [('a.txt', 'whole')]
    """
    writer = "" if lone else f".{os.getpid()}"
    aside = path.with_name(f"{path.name}{writer}.partial")
    try:
        yield aside
        sync([aside])
        os.replace(aside, path)
        sync([path.parent])
    finally:
        aside.unlink(missing_ok=True)
