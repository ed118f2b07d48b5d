"""Executes notebooks and keeps their outputs, as `make notebooks` does with all of them.

    python notebooks/run.py [notebook.ipynb ...]

Each runs in a fresh kernel, one thread each, as many side by side as there are cores. A notebook is
written only if it ran to its end within the limits, so a failed run leaves the kept one in place.
Nothing of the run is kept but its outputs: no times, no versions, no counts of earlier runs.

The limit is on processor time, not on the clock: on two idle cores a notebook of one thread takes
no longer than this, and on a busy machine the clock says more of the neighbours than of the
notebook. The aim is 45 seconds; refused is what takes twice that, since a core shared with a
neighbour's thread does half the work in its time. The time is that of the kernel's process and all
it started, imports included.

A notebook may need a package that the project does not install: its metadata name the version,
`"needs": {"mhcnuggets": "2.4.1"}`. Where that is not installed it is passed over, and said so.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FOLDER = Path(__file__).parent
PROCESSOR_LIMIT = 2 * 45.0  # seconds
SIZE_LIMIT = 500_000  # bytes
HANGS_AFTER = 600  # seconds on the clock, for one cell
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of a traceback, for a terminal


class NotebookError(Exception):
    """A notebook that did not run to its end within the limits."""


def execute(path: Path) -> str:
    """Run a notebook and write its outputs into it, aside first and then by renaming.

    Returns:
        What it took, in words; or what it needs, if it was passed over.

    Raises:
        NotebookError: a cell failed, hung or wrote to stderr, or a limit was passed; the file is
            as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    for package, version in notebook.metadata.get("needs", {}).items():
        if _installed(package) != version:
            wanted = f"{package}=={version}"
            return f"{path.name}: passed over, needs {wanted} (pip install --no-deps {wanted})"
    before = _processor_time()
    client = NotebookClient(
        notebook,
        timeout=HANGS_AFTER,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # not of the transport, at every start
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise NotebookError(f"{path.name}: {COLOURS.sub('', str(error))}") from error
    seconds = _processor_time() - before
    # The version of Python would change the file from machine to machine.
    notebook.metadata["language_info"] = {"name": "python"}
    text = nbformat.writes(notebook)
    size = len(text.encode())
    _refuse(path.name, notebook, seconds, size)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
    return f"{path.name}: {seconds:.0f} s of processor time, {size / 1000:.0f} kB"


def _installed(package: str) -> str | None:
    """Give the version of a package, without importing it; None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor_time() -> float:
    """Seconds of all processes that this one started and that have ended, with their children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _refuse(name: str, notebook: nbformat.NotebookNode, seconds: float, size: int) -> None:
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            # Warnings and progress bars; nothing on stderr is meant to be read in a notebook.
            if output.output_type == "stream" and output.name == "stderr":
                raise NotebookError(f"{name}: cell {number} wrote to stderr: {output.text}")
    if seconds > PROCESSOR_LIMIT:
        raise NotebookError(
            f"{name}: {seconds:.0f} s of processor time, {PROCESSOR_LIMIT:.0f} s are allowed; "
            "take fewer draws or a smaller problem"
        )
    if size > SIZE_LIMIT:
        raise NotebookError(
            f"{name}: {size / 1000:.0f} kB, {SIZE_LIMIT / 1000:.0f} kB are allowed; make the "
            "pictures smaller or rasterise them"
        )


def main(paths: list[Path]) -> int:
    """Run all; the exit status is 1 if one failed."""
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        print(f"no such notebook: {', '.join(map(str, missing)) or FOLDER}", file=sys.stderr)
        return 2
    import matplotlib.font_manager  # noqa: F401  # else each kernel may build its cache, and say so

    failed = False
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for future in [pool.submit(execute, path) for path in paths]:
            try:
                print(future.result(), flush=True)
            except NotebookError as error:
                failed = True
                print(error, file=sys.stderr, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb"))))
