"""What tasks share: written once, mapped into memory by each, refused where it cannot be sent."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.checkpoints import Tied
from torch import nn

from ppl_fe.tasks.folder import TaskFolder, taken


def test_tensors_are_written_once_and_mapped(tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path / "tasks")
    rows = torch.randn(1000, 100)
    folder.put("data", {"inputs": rows, "again": rows, "some": rows[:3]})
    found = taken(folder.path, "data")
    assert torch.equal(found["inputs"], rows)
    assert torch.equal(found["some"], rows[:3])
    assert sum(file.stat().st_size for file in folder.path.iterdir()) < 1.01 * rows.nbytes + 10_000
    found["inputs"].zero_()  # a worker's own
    assert torch.equal(taken(folder.path, "data")["inputs"], rows)
    folder.close()
    assert not list(tmp_path.iterdir())


def test_a_module_comes_as_it_is_also_one_that_is_defined_here(tmp_path: Path) -> None:
    class Local(Tied):
        """By its definition, as a notebook's classes."""

    module = Local()
    folder = TaskFolder(tmp_path / "tasks")
    folder.put("module", module)
    found: Any = taken(folder.path, "module")
    assert found.embedding.weight is found.head.weight
    assert torch.equal(found.head.weight, module.head.weight)
    assert found.head.weight.requires_grad


def test_what_belongs_to_this_process_is_refused_by_its_name(tmp_path: Path) -> None:
    module: Any = nn.Linear(2, 1)
    module.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"^module cannot be pickled \(TypeError: .*leave out"):
        TaskFolder(tmp_path / "tasks").put("module", module)


def test_a_worker_that_does_not_see_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not see .*give save_to there, or set"):
        taken(tmp_path, "data")


def test_what_a_killed_call_has_left_goes(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "old").touch()
    assert not list(TaskFolder(tmp_path / "tasks").path.iterdir())
