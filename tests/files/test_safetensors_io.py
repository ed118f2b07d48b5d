"""Checked files are safetensors files that the library reads, and nothing lies beside them."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from cases.killed import in_a_process
from safetensors import safe_open
from torch import Tensor

from ppl_fe.files.safetensors_io import TYPES, write_checked


@pytest.fixture
def of_all_types() -> dict[str, Tensor]:
    values = torch.tensor([[0.0, 1.0, -2.0], [3.0, 0.5, 7.0]])
    return {
        **{str(kind): values.abs().to(kind) for kind in TYPES},
        "a view": values[:, 1],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(5, dtype=torch.uint8),
    }


def test_every_type_is_read_by_the_library_as_it_was(
    tmp_path: Path, of_all_types: dict[str, Tensor]
) -> None:
    path = tmp_path / "x.safetensors"
    write_checked(path, of_all_types, {"a": "\u03b3"}, "example 1", lone=True)
    with safe_open(path, framework="pt") as file:
        assert {*file.keys()} == {*of_all_types}
        assert file.metadata()["format"] == "example 1"
        for name, wanted in of_all_types.items():
            found = file.get_tensor(name)
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_killed_in_the_middle_leaves_no_file_of_another_name(
    tmp_path: Path,
) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # killed where a file becomes longer
        write_checked(tmp_path / "run", {"x": torch.zeros(1000)}, {}, "example 1", lone=True)

    assert in_a_process(limited) == -signal.SIGXFSZ
    assert [file.name for file in tmp_path.iterdir()] == ["run.partial"]
