"""`ppl-fe select` and `ppl-fe finetune`: the files that they write, and what they print."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from cases.shell import MASK, MODULE, QUICK, SELECT, TASK, TUNE, enter_task, run
from ppl_fe.models.likelihoods import LIKELIHOODS
from safetensors.torch import load_file, save_file

import ppl_fe as fe
from ppl_fe.cli import finetune_command, main, select_command, task
from ppl_fe.finetuning.rules.shorthands import RULE_NAMES, RULES
from ppl_fe.finetuning.scoring import DEFAULT_BATCH
from ppl_fe.finetuning.train.training import LEARNING_RATES


def network_of(folder: Path) -> fe.FlatNetwork:
    """The pretrained network as the shell makes it, under another head."""
    module = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    state = fe.read_checkpoint(folder / "base.safetensors")
    return fe.FlatNetwork(module).with_state(state, ("2.weight", "2.bias"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter_task(tmp_path, monkeypatch)
    return tmp_path


def test_from_checkpoint_to_delta(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SELECT, *QUICK, "--plot", "scales.png") == 0
    printed = capsys.readouterr().out
    assert "Selection(rule='bayestune', 6 of 56 parameters, 10.7 %)" in printed
    assert re.search(r"0\.weight +\d +48 +[\d.]+%", printed)
    assert "2.weight" not in printed
    assert (folder / "scales.png").read_bytes().startswith(b"\x89PNG")

    validation = ["--validation", f"{MODULE}:held_out", "--learning-rate", "0.05"]
    assert run(*TUNE, *MASK, *validation) == 0
    printed = capsys.readouterr().out
    losses = re.search(
        r"validation loss ([\d.]+) -> ([\d.]+), accuracy .* best after step", printed
    )
    assert losses is not None
    assert float(losses[2]) < 0.7 * float(losses[1])
    size = (folder / "task.safetensors").stat().st_size
    assert "6 of 56 pretrained parameters (10.714%) and 18 of the head" in printed
    assert f"{size:,} bytes" in printed

    # What the files say is what was printed, and what the delta does.
    network = network_of(folder)
    selection = fe.load_selection(folder / "selection.safetensors", network)
    module = network.module
    fe.apply_delta(module, folder / "task.safetensors")
    changed = network.flatten(dict(module.named_parameters())) != network.anchor
    changed[network.slices["2.weight"]] = changed[network.slices["2.bias"]] = False
    assert torch.equal(changed, selection.mask)
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(
            module(inputs), (inputs[:, 0] + inputs[:, 1] > 0).long()
        )
    assert loss.item() == pytest.approx(float(losses[2]), abs=1e-4)
    assert not list(folder.glob("*.partial"))


def test_equal_commands_give_equal_files(folder: Path) -> None:
    # The head's own start is random: it comes of the seed, too.
    quick = ["--rule", "gradient_squared", "--sparsity", "0.1", "--batch-size", "20"]
    assert run(*SELECT, *quick, "--seed", "3") == 0
    first = load_file(folder / "selection.safetensors")
    torch.manual_seed(99)
    assert run(*SELECT, *quick, "--seed", "3") == 0
    again = load_file(folder / "selection.safetensors")
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert run(*SELECT, *quick, "--seed", "4") == 0
    other = load_file(folder / "selection.safetensors")["score"]
    assert not torch.equal(other.nan_to_num(), first["score"].nan_to_num())


@pytest.mark.parametrize(("method", "count"), [("full", 56), ("head", 0), ("lora", 48)])
def test_other_methods_need_no_selection(
    method: str, count: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--method", method, "--num-steps", "30", "--learning-rate", "0.05"]
    assert run(*TUNE, *options) == 0
    printed = capsys.readouterr().out
    losses = re.search(r"training loss ([\d.]+) -> ([\d.]+), means over 3 batches", printed)
    assert losses is not None
    assert float(losses[2]) < float(losses[1])
    assert f"{count} of 56 pretrained parameters" in printed
    fe.apply_delta(network_of(folder).module, folder / "task.safetensors")


SELECT_OPTIONS: dict[str, Any] = {
    "head": ["2"], "likelihood": "normal", "batch_size": 7, "seed": 3, "sparsity": "knee",
    "threshold": 0.5, "parameters": ["linear", "0.*"],
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "bayestune": {
        "data_size": 1e12, "step_size": 1e-5, "num_chains": 1, "groups": "row", "num_samples": 20,
        "warmup_steps": 30, "thinning": 2, "gradient": "control_variate",
    },
    "collapsed": {"count_top": True, "data_size": "auto"},
    "movement": {"num_steps": 9, "learning_rate": 0.1},
    "low_rank": {"rank": 3},
    "released_code": {"num_samples": 20, "learning_rate": 0.1},
}  # fmt: skip
TUNE_OPTIONS: dict[str, Any] = {
    "head": ["2"], "likelihood": "normal", "batch_size": 7, "seed": 3, "method": "lora",
    "optimizer": "sgd", "learning_rate": 0.1, "num_steps": 9, "num_epochs": 2, "weight_decay": 0.1,
    "schedule": "constant", "evaluate_every": 5, "patience": 2, "lora_rank": 4,
    "parameters": ["0"],
}  # fmt: skip


def arriving(where: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a command gives the function that stands at `module:name`, run up to there."""
    given: dict[str, Any] = {}

    def caught(network: fe.FlatNetwork, data: Any, **options: Any) -> None:
        given.update(options)
        raise KeyboardInterrupt

    module, _, name = where.partition(":")
    monkeypatch.setattr(importlib.import_module(module), name, caught)
    assert run(*arguments) == 130  # as interrupted
    return given


def flags(options: dict[str, Any]) -> list[str]:
    """The options as they are written in a shell."""
    parts = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [] if value is True else [value]
        parts += [f"--{name.replace('_', '-')}", *map(str, values)]
    return parts


def test_every_option_of_finetune_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    tune = "ppl_fe.finetuning.train.training:finetune"
    base = [*TUNE, "--method", "head"]
    plain = {"head": ["2"], "progress_bar": sys.stderr.isatty(), "method": "head"}
    assert arriving(tune, base, monkeypatch) == plain  # Python's own defaults
    given = arriving(tune, [*base, *flags(TUNE_OPTIONS)], monkeypatch)
    assert {name: given[name] for name in TUNE_OPTIONS} == TUNE_OPTIONS
    assert set(TUNE_OPTIONS) <= set(inspect.signature(fe.finetune).parameters)


SELECT_AT = "ppl_fe.finetuning.select:select_parameters"


def test_every_option_of_select_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"head": ["2"], "progress_bar": sys.stderr.isatty(), "rule": fe.BayesTune()}
    assert arriving(SELECT_AT, SELECT, monkeypatch) == plain  # Python's own defaults
    given = arriving(SELECT_AT, [*SELECT, *flags(SELECT_OPTIONS)], monkeypatch)
    assert {name: given[name] for name in SELECT_OPTIONS} == SELECT_OPTIONS
    assert set(SELECT_OPTIONS) <= set(inspect.signature(fe.select_parameters).parameters)


@pytest.mark.parametrize("rule", SETTINGS)
def test_every_setting_of_a_rule_arrives(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"rule": rule, **SETTINGS[rule]}
    given = arriving(SELECT_AT, [*SELECT, *flags(options)], monkeypatch)
    assert given["rule"] == RULES[rule](**SETTINGS[rule])


def test_the_shell_has_the_rules_of_python() -> None:
    assert select_command.RULES == RULE_NAMES


def test_the_former_option_works_and_names_the_new_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    former = [*SELECT, "--method", "paper", "--num-chains", "3", "--num-samples", "7"]
    given = arriving(SELECT_AT, former, monkeypatch)
    assert given["rule"] == fe.ReleasedCode(num_samples=7)
    assert "--method is called --rule now: --rule released_code" in capsys.readouterr().err


def test_the_choices_of_the_shell_are_those_of_python() -> None:
    assert tuple(sorted(LEARNING_RATES)) == finetune_command.METHODS
    assert tuple(sorted(LIKELIHOODS)) == task.LIKELIHOODS
    annotated = inspect.signature(fe.finetune, eval_str=True).parameters
    assert get_args(annotated["optimizer"].annotation) == finetune_command.OPTIMIZERS
    assert get_args(annotated["schedule"].annotation) == finetune_command.SCHEDULES


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command, said in (("select", "--sparsity"), ("finetune", "--selection")):
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0
        assert said in capsys.readouterr().out


def test_a_base_that_changed_on_disk(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SELECT, "--rule", "magnitude") == 2  # 0.5 % of 56 parameters are none
    assert "sparsity=0.005 of 56 parameters selects 0" in capsys.readouterr().err
    assert run(*SELECT, "--rule", "magnitude", "--sparsity", "0.1") == 0
    weights = load_file(folder / "base.safetensors")
    weights["0.bias"][3] += 1e-6
    save_file(weights, folder / "base.safetensors")
    assert run(*TUNE, *MASK) == 2
    error = capsys.readouterr().err
    assert "belongs to other weights than the network's" in error
    assert "whose file may have changed since" in error
    assert not (folder / "task.safetensors").exists()


BAD = {
    "no such base": (["select", "nowhere.pt", *SELECT[2:]], "base: there is nothing at nowhere.pt"),
    "another network": ([*SELECT, "--network", f"{MODULE}:wider"], "base.safetensors: the state"),
    "no head": ([*SELECT, "--head", "5"], "head='5' names no parameter"),
    "a head that the base lacks": (
        ["select", *TASK, "--output", "selection.safetensors"],
        "missing from it (2): 2.weight, 2.bias",
    ),
    "one class": ([*SELECT, *QUICK, "--data", f"{MODULE}:one_class"], "one class only, 0"),
    "too sparse": ([*SELECT, "--sparsity", "1e-6"], "selects 0"),
    "no folder": ([*SELECT, "--output", "no/folder.safetensors"], "--output: there is no folder"),
    "a folder": ([*SELECT, "--output", "."], "--output must be a file"),
    "no such parameters": (
        [*SELECT, "--parameters", "0.wieght"],
        "parameters: '0.wieght' matches none; did you mean '0.weight'?",
    ),
    "no share": ([*SELECT, "--sparsity", "half"], "a share such as 0.005, or knee, got 'half'"),
    "another rule": ([*SELECT, "--rule", "magnitud"], "did you mean 'magnitude'?"),
    "no such validation": (
        [*TUNE, *MASK, "--network", f"{MODULE}:broken", "--validation", f"{MODULE}:held_ot"],
        "--validation: module 'finetuning_factories' has no 'held_ot'; did you mean 'held_out'?",
    ),
    "a setting of another rule": ([*SELECT, "--num-steps", "3"], "bayestune has no --num-steps"),
    "a picture of no kind": ([*SELECT, "--plot", "a.docx"], "--plot must end in one of .eps"),
    "not finite": (
        [*SELECT, *QUICK, "--network", f"{MODULE}:unbounded", "--data", f"{MODULE}:infinite"],
        "the loss is nan, first in the output of layer '0'",
    ),
    "no selection": (TUNE, "--method mask needs --selection"),
    "needless selection": (
        [*TUNE, *MASK, "--method", "full"],
        "--method full takes no --selection",
    ),
    "no such selection": (
        [*TUNE, "--selection", "nowhere"],
        "--selection: there is nothing at nowhere",
    ),
    "not a selection": ([*TUNE, "--selection", "base.safetensors"], "is no selection file"),
    "another head": (["finetune", *TASK, *MASK, "--output", "task.safetensors"], "2.weight"),
    "a head of its own": (
        [*TUNE, *MASK, "--head", "2.weight"],
        "--head: selection.safetensors was made with the head ['2.weight', '2.bias']",
    ),
    "a diverging step": ([*TUNE, *MASK, "--learning-rate", "1e38"], "lower learning_rate"),
    "another optimiser": ([*TUNE, *MASK, "--optimizer", "lion"], "'lion' is none of adamw, sgd"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_leaves_the_files_as_they_were(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"2.weight": torch.ones(2, 8), "2.bias": torch.zeros(2)}
    if kind == "a head of its own":  # a base with a head of another task
        save_file(load_file(folder / "base.safetensors") | whole, folder / "base.safetensors")
    assert run(*SELECT, "--rule", "magnitude", "--sparsity", "0.1") == 0
    (folder / "task.safetensors").write_text("an older delta")
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    capsys.readouterr()
    arguments, message = BAD[kind]
    try:
        status = run(*arguments)
    except SystemExit as left:  # where the options cannot be read
        status = int(left.code or 0)
    assert status == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"ppl-fe {arguments[0]}: ")
    assert message in errors
    assert "Traceback" not in errors
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before


def test_the_defaults_in_the_help_are_those_of_python() -> None:
    shown = inspect.signature(fe.finetune).parameters
    for action in finetune_command.parser()._actions[1:]:
        default = getattr(shown.get(action.dest), "default", None)
        if action.option_strings and default is not None and not action.required:
            assert f"default {default}" in str(action.help), action.dest
    assert select_command.DEFAULT_BATCH == DEFAULT_BATCH
