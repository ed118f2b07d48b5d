"""`ppl-fe diagnose`: the verdict of Python, and its exit status."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import gaussian, run

import ppl_fe as fe
from ppl_fe.cli import main


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run.zarr"
    run(fe.BAOAB(gaussian, step_size=0.25, friction=2.0), num_samples=60, save_to=path)
    return path


def test_it_prints_the_table_and_fails_with_the_run(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", str(saved)]) == 1
    printed = capsys.readouterr().out
    verdict = fe.diagnose(saved)
    assert printed == f"{verdict}\n"
    assert "ess_bulk" in verdict.failures
    assert "raise num_samples or thinning" in printed


def test_what_passes_has_the_status_zero(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = fe.Diagnosis((fe.Check.below("r_hat", 1.0, 1.01, ""),))
    monkeypatch.setattr("ppl_fe.diagnostics.diagnose", lambda *_, **__: passed)
    assert main(["diagnose", str(saved)]) == 0


def test_options_arrive(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(saved), "--difference", "20", "--superchains", "2"]) == 1
    printed = capsys.readouterr().out
    assert "wbic_error" in printed
    assert "nested_r_hat" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.zarr"], "there is nothing at nowhere.zarr"),
        (["."], "is no zarr folder"),
        (["{saved}", "--difference", "-1"], "difference must be positive"),
        (["{saved}", "--superchains", "3"], "must be at least 2 and divide the 4 chains"),
        (["{saved}", "--group", "1"], "one target"),
    ],
)
def test_bad_input_has_the_status_two(
    arguments: list[str],
    message: str,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["diagnose", *(text.format(saved=saved) for text in arguments)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("ppl-fe diagnose: ")
    assert message in errors
    assert "Traceback" not in errors
