"""`ppl-fe select` and `ppl-fe finetune`: bad input is told in a line and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_shell import MASK, MODULE, QUICK, SELECT, TASK, TUNE, enter_task, run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter_task(tmp_path, monkeypatch)
    return tmp_path


def test_a_base_that_changed_on_disk(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SELECT, "--method", "magnitude") == 2  # 0.5 % of 56 parameters are none
    assert "sparsity=0.005 of 56 parameters selects 0" in capsys.readouterr().err
    assert run(*SELECT, "--method", "magnitude", "--sparsity", "0.1") == 0
    weights = load_file(folder / "base.safetensors")
    weights["0.bias"][3] += 1e-6
    save_file(weights, folder / "base.safetensors")
    assert run(*TUNE, *MASK) == 2
    error = capsys.readouterr().err
    assert "belongs to other weights than the network's" in error
    assert "whose file may have changed since" in error
    assert not (folder / "task.safetensors").exists()


BAD = {
    "no such base": (["select", "nowhere.pt", *SELECT[2:]], "no checkpoint at nowhere.pt"),
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
    "no such selection": ([*TUNE, "--selection", "nowhere"], "no selection file at nowhere"),
    "not a selection": ([*TUNE, "--selection", "base.safetensors"], "is no selection file"),
    "another head": (["finetune", *TASK, *MASK, "--output", "task.safetensors"], "2.weight"),
    "a head of its own": (
        [*TUNE, *MASK, "--head", "2.weight"],
        "--head: selection.safetensors was made with the head ['2.weight', '2.bias']",
    ),
    "a diverging step": ([*TUNE, *MASK, "--learning-rate", "1e38"], "lower learning_rate"),
    "another optimiser": ([*TUNE, *MASK, "--optimizer", "lion"], "must be 'adamw' or 'sgd'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_leaves_the_files_as_they_were(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"2.weight": torch.ones(2, 8), "2.bias": torch.zeros(2)}
    if kind == "a head of its own":  # a base with a head of another task
        save_file(load_file(folder / "base.safetensors") | whole, folder / "base.safetensors")
    assert run(*SELECT, "--method", "magnitude", "--sparsity", "0.1") == 0
    (folder / "task.safetensors").write_text("an older delta")
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    capsys.readouterr()
    arguments, message = BAD[kind]
    assert run(*arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"ppl-fe {arguments[0]}: ")
    assert message in errors
    assert "Traceback" not in errors
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before
