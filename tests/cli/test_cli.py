"""The shell command: exit status, files, and messages that name the option."""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch
from cases.runs import gaussian, run
from cases.shell import enter
from safetensors.torch import save_file

import ppl_fe as fe
from ppl_fe.cli import COMMANDS, main, rank_command
from ppl_fe.cli.factories import find_factory
from ppl_fe.diagnostics.run_data import open_draws
from ppl_fe.version import __version__

FACTORIES = """
import torch
from torch import nn

def network():
    return nn.Linear(3, 1, bias=False)

def deeper():
    return nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1))

def data():
    return torch.randn(50, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(50)

def held_out():
    return torch.ones(10, 3), torch.zeros(10)

SIZE = 3

def broken():
    raise ValueError("no such data set here")
"""
QUICK = ["--likelihood", "normal", "--num-samples", "40", "--warmup-steps", "40", "--thinning", "5"]
RANK = ["rank", "--network", "factories_of_a_test:network", "--data", "factories_of_a_test:data"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a module of factories and two checkpoints."""
    for name, size in {"a": 0.0, "b": 3.0}.items():
        save_file({"weight": torch.full((1, 3), size)}, tmp_path / f"{name}.safetensors")
    enter(tmp_path, "factories_of_a_test", FACTORIES, monkeypatch)
    return tmp_path


def rank(*arguments: str) -> int:
    status = main([*RANK, *QUICK, *arguments])
    sys.modules.pop("factories_of_a_test", None)
    return status


def status(arguments: list[str]) -> int:
    """The exit status, also where the options cannot be read."""
    try:
        return main(arguments)
    except SystemExit as left:
        return int(left.code or 0)


def test_ranking_by_name_and_by_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rank("one=b.safetensors", "a.safetensors", "--output", "table.csv") == 0
    table = pd.read_csv(folder / "table.csv", index_col="checkpoint", keep_default_na=False)
    assert list(table.index) == ["a.safetensors", "one"]
    assert (table["error"] == "").all()
    printed = capsys.readouterr().out
    assert printed.index("a.safetensors") < printed.index("one ")
    assert "note: one: " in printed
    assert "Lower WBIC is claimed to mean better transfer." in printed
    assert not list(folder.glob("*.partial"))


def test_a_path_with_an_equals_sign(folder: Path) -> None:
    (folder / "lr=0.1.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    assert rank("lr=0.1.safetensors", "--output", "table.json") == 0
    assert list(json.loads((folder / "table.json").read_text())) == ["lr=0.1.safetensors"]


def test_the_old_name_of_features(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rank("a.safetensors", "--baselines", "--head", "nothing") == 2
    errors = capsys.readouterr().err
    assert "--head is called --features now" in errors
    assert "features='nothing' is no submodule" in errors


def test_every_option_arrives(folder: Path) -> None:
    options = {
        "--localization": "20",
        "--inverse-temperature": "0.5",
        "--batch-size": "0",
        "--step-size": "0.001",
        "--num-chains": "3",
        "--seed": "7",
        "--save-to": "draws",
        "--held-out": "factories_of_a_test:held_out",
        "--output": "table.json",
    }
    flat = [part for pair in options.items() for part in pair]
    assert rank("a.safetensors", *flat) == 0
    (row,) = json.loads((folder / "table.json").read_text()).values()
    assert row["validation_loss"] == pytest.approx(0.9189385, rel=1e-6)
    assert "geometric_complexity" not in row
    attrs = json.loads((folder / "draws" / "0.zarr" / "zarr.json").read_text())["attributes"]
    expected = {"localization": 20.0, "inverse_temperature": 0.5, "step_size": 0.001, "seed": 7}
    expected |= {"num_chains": 3, "batch_size": 50, "num_samples": 40, "warmup_steps": 40}
    assert {name: attrs[name] for name in expected} == expected


@pytest.mark.parametrize(("layer", "expected"), [([], 6.0), (["--features", "0"], 3.0)])
def test_baselines(layer: list[str], expected: float, folder: Path) -> None:
    state = {"0.weight": torch.ones(2, 3), "1.weight": torch.zeros(1, 2), "1.bias": torch.zeros(1)}
    save_file(state, folder / "deeper.safetensors")
    network = ["--network", "factories_of_a_test:deeper"]
    output = ["--output", "table.json"]
    assert rank("deeper.safetensors", *network, "--baselines", *layer, *output) == 0
    (row,) = json.loads((folder / "table.json").read_text()).values()
    # What enters the last layer has the Jacobian (1 1 1; 1 1 1), what enters the first is x itself.
    assert row["geometric_complexity"] == pytest.approx(expected)


def test_a_checkpoint_without_a_number_makes_the_status_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "torn.pt").write_bytes(b"half a checkpoint")
    assert rank("a.safetensors", "torn.pt", "--output", "table.csv") == 1
    assert "error: torn.pt: " in capsys.readouterr().out
    assert list(pd.read_csv(folder / "table.csv")["checkpoint"]) == ["a.safetensors", "torn.pt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b.safetensor"], "nothing at b.safetensor; did you mean 'b.safetensors'?"),
        (["second=runs/b.pt"], "checkpoints: there is no folder 'runs'"),
        (["b.safetensors", "--save-to", "draws"], "--save-to: draws already exists"),
        (["b.safetensors", "--output", "runs/table.csv"], "--output: there is no folder 'runs'"),
    ],
)
def test_files_are_looked_for_before_the_network_is_built(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "draws").mkdir()
    assert main([*RANK, *QUICK, "a.safetensors", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert "factories_of_a_test" not in sys.modules


def test_a_table_that_can_be_trusted() -> None:
    table = pd.DataFrame({"p_best": [0.7, 0.3], "llc": [-2.0, 1.0], "llc_mcse": 0.1})
    assert rank_command._trusted(table)
    below = table.assign(llc=-2.0)
    assert not rank_command._trusted(below)
    assert not rank_command._trusted(table.assign(p_best=[1.0, float("nan")]))


def test_error_bars_worth_nothing_make_the_status_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rank("a.safetensors", "b.safetensors", "--step-size", "1e-9", "--warmup-steps", "0") == 1
    printed = capsys.readouterr().out
    header, *lines = printed.splitlines()
    assert header.split()[-1] == "p_best"
    assert [line.split()[-1] for line in lines[1:3]] == ["—", "—"]
    assert "The order is not settled: the chains of" in printed
    assert "error:" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "factories_of_a_test:dta", "--network", "factories_of_a_test:broken"],
            "has no 'dta'; did you mean 'data'?",
        ),
        (["-x", "3"], "no option -x; it is not one of this command's"),
        (["--likelihood", "normla"], "none of categorical, next_token, normal; did you mean 'norm"),
        (["--network", "network"], "--network must be MODULE:FACTORY, got 'network'"),
        (["--network", "factories_of_a_test:nothing"], "has no 'nothing'"),
        (["--network", "factories_of_a_test:netwrok"], "did you mean 'network'?"),
        (["a=b.safetensors", "a=a.safetensors"], "the name 'a' is given twice"),
        (["--data", "no_module_of_this_name:data"], "no_module_of_this_name"),
        (
            ["--data", "factories_of_a_test:broken"],
            "failed: ValueError: no such data set here (factories_of_a_test.py, line 20)",
        ),
        (["--data", "factories_of_a_tset:data"], "did you mean 'factories_of_a_test'?"),
        (["--data", "factories_of_a_test:SIZE"], "is no function, but of type int"),
        (["--localization", "-1"], "localization must be a positive number"),
        (["--num-chains", "0"], "num_chains"),
        (["--output", "table.xlsx"], "--output must end in .csv or .json, got 'table.xlsx'"),
    ],
)
def test_bad_options_make_the_status_two(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    assert status([*RANK, *QUICK, "a.safetensors", *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("ppl-fe rank: ")
    assert message in errors
    assert "Traceback" not in errors
    after = {path: path.read_bytes() for path in folder.glob("*.*")}
    assert after == before


def test_an_interrupted_write_leaves_the_old_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "table.csv").write_text("the old table")

    def full_disk(_: pd.DataFrame, path: Path) -> None:
        Path(path).write_text("half a ta")
        raise OSError("no space left")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full_disk)
    assert rank("a.safetensors", "--output", "table.csv") == 2
    assert "no space left" in capsys.readouterr().err
    assert (folder / "table.csv").read_text() == "the old table"


def test_interruption_has_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ppl_fe.free_energy.ranking.rank_checkpoints", interrupted)
    assert rank("a.safetensors") == 130


def test_a_factory_is_found_in_the_current_folder() -> None:
    inputs, _ = find_factory("--data", "factories_of_a_test:data")()
    assert inputs.shape == (50, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], ["demo", "rank"]),
        (
            ["rank", "--help"],
            [
                "Exit status 0: every checkpoint has",
                "MODULE:FACTORY",
                "NAME=PATH",
                "--localization",
                "default 1/log n",
                "how long it takes:",
                "example:\n  ppl-fe rank",
            ],
        ),
        (["demo", "--help"], ["--output", "--seed"]),
        (["--version"], [__version__]),
    ],
)
def test_help(arguments: list[str], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in said)


LENGTHS = dict.fromkeys(("num_samples", "warmup_steps", "thinning"), "as needed")


def test_help_shows_the_defaults_of_python() -> None:
    chains = argparse.ArgumentParser()
    rank_command._add_chains(chains)
    shown = inspect.signature(fe.rank_checkpoints).parameters
    for action in chains._actions[1:]:  # but --help
        default = {"inverse_temperature": "1/log n", **LENGTHS}.get(
            action.dest, shown[action.dest].default
        )
        assert f"default {default}" in str(action.help)


PARSERS = {name: import_module(f"ppl_fe.cli.{name}_command").parser() for name in COMMANDS}


@pytest.mark.parametrize("name", PARSERS)
def test_every_option_has_its_default_in_the_help(name: str) -> None:
    for action in PARSERS[name]._actions[1:]:
        shown = action.help != argparse.SUPPRESS and action.option_strings and not action.required
        said = " ".join(str(action.help).split())
        assert not shown or "default " in said or action.dest == "selection", action.dest


def test_help_and_mistakes_import_nothing_that_takes_seconds() -> None:
    lines = [
        ["--help"],
        ["rnak"],
        *([name, "--help"] for name in COMMANDS),
        ["rank", "--nework", "mine:network"],
        ["diagnose", "nowhere.zarr"],
        [*RANK, "nowhere.pt"],
    ]
    code = (
        "import sys\nfrom ppl_fe.cli import main\n"
        f"for line in {lines}:\n"
        "    try:\n        main(line)\n    except SystemExit:\n        pass\n"
        "slow = {'torch', 'pyro', 'pandas', 'numpy', 'scipy', 'xarray', 'matplotlib', 'zarr'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_public_names_are_imported_when_they_are_used() -> None:
    code = (
        "import sys, ppl_fe as fe; assert {'sample', 'models'} < set(dir(fe)) <= "
        "{*fe.__all__, 'MaskedTraining'}; assert 'torch' not in sys.modules; "
        "fe.sapmle"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "has no attribute 'sapmle'. Did you mean: 'sample'?" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ppl-fe: no command was given; there are demo, rank, select, finetune, diagnose"),
        (["rnak"], "ppl-fe: no command 'rnak'; did you mean 'rank'?"),
        (["rank"], "ppl-fe rank: the following arguments are required: checkpoints, --network"),
        (["rank", "--nework", "a:b"], "ppl-fe rank: no option --nework; did you mean --network?"),
        (["rank", "--gamma=1"], "ppl-fe rank: no option --gamma; did you mean --localization?"),
        (["finetune", "--xyz"], "no option --xyz; it is not one of this command's"),
        (
            ["select", "--sparsity", "few"],
            "--sparsity: must be a share such as 0.005, or knee, got 'few'",
        ),
    ],
)
def test_a_command_line_that_cannot_be_read(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


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


def test_what_a_ranking_saved_is_checked_checkpoint_by_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert rank("a.safetensors", "b.safetensors", "--save-to", "draws") == 0
    capsys.readouterr()
    assert main(["diagnose", "draws"]) == 1
    printed = capsys.readouterr().out
    verdict = fe.diagnose("draws/0.zarr", group=1)
    assert f"b.safetensors:\n{verdict}\n\n" in printed
    assert printed.endswith("0 of 2 passed\n")
    # a is at its minimum, where the loss is log sqrt(2π), and b is not.
    losses = open_draws("draws/0.zarr").attrs["anchor_loss"]
    assert losses[0] == pytest.approx(0.9189385)
    assert losses[1] > 5
    table = json.loads(Path("draws/table.json").read_text())
    Path("draws/table.json").write_text(json.dumps({**table, "table": "{}"}))
    main(["diagnose", "draws"])
    assert f"0.zarr, target 1 of 2:\n{verdict}\n\n" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import no_such_package", "broken_module: ModuleNotFoundError: No module named 'no_such"),
        ("x = 1\ny = x / 0", "broken_module cannot be imported: ZeroDivisionError: .*line 2"),
    ],
)
def test_a_module_of_factories_that_fails_says_where(
    content: str, message: str, folder: Path
) -> None:
    (folder / "broken_module.py").write_text(content)
    with pytest.raises((ImportError, ValueError), match=f"--data: {message}"):
        find_factory("--data", "broken_module:data")


def test_what_follows_two_dashes_is_no_option(folder: Path) -> None:
    given = rank_command.parser().read([*RANK[1:], "--", "--a.safetensors"])
    assert given["checkpoints"] == ["--a.safetensors"]


@pytest.mark.parametrize(
    ("command", "lacks", "message"),
    [
        ("demo", "ppl_fe.demo", r"pip install 'ppl-fe\[demo\]'"),
        ("select", "matplotlib.figure", r"--plot needs matplotlib: pip install 'ppl-fe\[plots\]'"),
    ],
)
def test_what_is_not_installed_is_named(
    command: str, lacks: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, lacks, None)
    module = import_module(f"ppl_fe.cli.{command}_command")
    with pytest.raises(ImportError, match=message):
        module.run({"output": "x"}) if command == "demo" else module._check_picture("x.png")


def test_warnings_are_lines_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(given: object) -> int:
        warnings.warn("look at this", RuntimeWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(rank_command, "run", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert rank("a.safetensors") == 0
    assert capsys.readouterr().err == "ppl-fe rank: look at this\n"
