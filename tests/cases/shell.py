"""The shell command in a folder of its own, with factories there, and a task to fine-tune for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ppl_fe.cli import main

FACTORIES = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))

def wider():
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2))

def unbounded():
    return nn.Sequential(nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 2))

def rows(count, seed):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] + x[:, 1] > 0).long()

def task():
    return rows(120, 1)

def held_out():
    return rows(60, 2)

def broken():
    raise ValueError("no network here")

def one_class():
    return rows(20, 3)[0], torch.zeros(20, dtype=torch.long)

def infinite():
    x, y = rows(20, 3)
    return 3e38 * x.sign(), y
"""
MODULE = "finetuning_factories"
TASK = ["base.safetensors", "--network", f"{MODULE}:build", "--data", f"{MODULE}:task"]
HEAD = ["--head", "2"]
SELECT = ["select", *TASK, *HEAD, "--output", "selection.safetensors"]
QUICK = ["--num-samples", "10", "--warmup-steps", "20", "--thinning", "1", "--sparsity", "0.1"]
TUNE = ["finetune", *TASK, *HEAD, "--output", "task.safetensors"]
MASK = ["--selection", "selection.safetensors"]


def enter(folder: Path, module: str, factories: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it the current folder, whose module of factories the shell command finds."""
    (folder / f"{module}.py").write_text(factories)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, module, raising=False)


def enter_task(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The factories above, and a checkpoint that lacks the task's head."""
    generator = torch.Generator().manual_seed(111)
    weights = {"0.weight": torch.randn(8, 6, generator=generator), "0.bias": torch.zeros(8)}
    save_file(weights, folder / "base.safetensors")
    enter(folder, MODULE, FACTORIES, monkeypatch)


def run(*arguments: str) -> int:
    """The exit status of the command; the next one imports the factories anew."""
    status = main(list(arguments))
    sys.modules.pop(MODULE, None)
    return status
