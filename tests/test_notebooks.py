"""The notebooks are kept as they ran, and a run that fails does not touch the kept one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
RUN = ROOT / "notebooks" / "run.py"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# /usr/..., /home/..., C:\...: where the run happened, which is nobody's business.
MACHINE_PATH = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|usr|opt|work|Users|var|private)/|[A-Z]:\\\\"
)
MEASURED = re.compile(r"\d\.\d{2,}|±")


def name(path: Path) -> str:
    return path.stem


@pytest.fixture(params=NOTEBOOKS, ids=name)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_it_is_small(path: Path) -> None:
    assert path.stat().st_size < 500_000


def test_it_ran_from_top_to_bottom(notebook: nbformat.NotebookNode) -> None:
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert "error" not in kinds
    assert "display_data" in kinds  # the pictures
    assert not any(
        output.output_type == "stream" and output.name == "stderr"
        for cell in cells
        for output in cell.outputs
    )


def test_it_opens_with_a_question(notebook: nbformat.NotebookNode) -> None:
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "?" in first.source


def test_it_tells_nothing_of_the_machine(notebook: nbformat.NotebookNode) -> None:
    assert "execution" not in {key for cell in notebook.cells for key in cell.metadata}
    assert notebook.metadata["language_info"] == {"name": "python"}
    for cell in code(notebook):
        for output in cell.outputs:
            data = {key: text for key, text in output.get("data", {}).items() if "image" not in key}
            assert not MACHINE_PATH.search(f"{output.get('text', '')}{data}")


def test_its_prose_states_no_measured_number(notebook: nbformat.NotebookNode) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"\$.*?\$", "", cell.source, flags=re.DOTALL)  # formulas may
            assert not MEASURED.search(prose), MEASURED.search(prose)


def run(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUN), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def write(path: Path, *sources: str) -> bytes:
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{k}") for k, source in enumerate(sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path.read_bytes()


BAD = {
    "error": ("1 / 0", "ZeroDivisionError"),
    "warning": ("import warnings; warnings.warn('careful')", "careful"),
    "large": ("print('x' * 600_000)", "kB are allowed"),
}


def test_failed_runs_leave_the_files_as_they_were_and_a_second_run_changes_nothing(
    tmp_path: Path,
) -> None:
    good = tmp_path / "good.ipynb"
    before = {good: write(good, "print('fine')", "2 + 2")}
    for name, (last, _) in BAD.items():
        path = tmp_path / f"{name}.ipynb"
        before[path] = write(path, "print('fine')", last)
    done = run(*before)
    assert done.returncode == 1
    complaints = re.split(r"^(?=\w+\.ipynb: )", done.stderr, flags=re.MULTILINE)[1:]
    for complaint, (name, (_, message)) in zip(complaints, BAD.items(), strict=True):
        assert complaint.startswith(f"{name}.ipynb: ")
        assert message in complaint
        path = tmp_path / f"{name}.ipynb"
        assert path.read_bytes() == before[path]
    assert sorted(tmp_path.iterdir()) == sorted(before)

    assert re.fullmatch(r"good\.ipynb: \d+ s of processor time, \d+ kB\n", done.stdout)
    first = good.read_bytes()
    assert first != before[good]
    assert nbformat.read(good, as_version=4).cells[1].outputs[0].data["text/plain"] == "4"
    again = run(good)
    assert again.returncode == 0, again.stderr
    assert good.read_bytes() == first


def test_the_limit_counts_processor_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RUN.parent))
    import run as runner

    path = tmp_path / "busy.ipynb"
    spin = "import time\nend = time.process_time() + 1\nwhile time.process_time() < end: pass"
    before = write(path, spin)
    monkeypatch.setattr(runner, "PROCESSOR_LIMIT", 1.0)
    with pytest.raises(runner.NotebookError, match="s of processor time, 1 s are allowed"):
        runner.execute(path)
    assert path.read_bytes() == before


def test_one_that_needs_a_package_is_passed_over_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(RUN.parent))
    import run as runner

    path = tmp_path / "needy.ipynb"
    for package, version in (("no-such-package", "1.0"), ("nbformat", "0.1")):
        write(path, "1 / 0")
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata["needs"] = {"nbformat": nbformat.__version__, package: version}
        nbformat.write(notebook, path)
        before = path.read_bytes()
        said = runner.execute(path)
        assert said.startswith(f"needy.ipynb: passed over, needs {package}=={version} (pip install")
        assert path.read_bytes() == before
    notebook.metadata["needs"] = {"nbformat": nbformat.__version__}
    nbformat.write(notebook, path)
    with pytest.raises(runner.NotebookError, match="ZeroDivisionError"):
        runner.execute(path)


def test_a_notebook_that_is_not_there(tmp_path: Path) -> None:
    done = run(tmp_path / "none.ipynb")
    assert done.returncode == 2
    assert "none.ipynb" in done.stderr
