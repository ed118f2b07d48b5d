"""Delta files: exact, small, switched at will, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_deltas import Tuned, X, base, contents, full_disk, same, saved, tuned
from torch import Tensor, nn

from ppl_fe.networks.delta_format import Delta, read_delta, write_delta
from ppl_fe.networks.deltas import apply_delta, save_delta


def test_applied_it_gives_the_fine_tuned_network_to_the_last_bit(tmp_path: Path) -> None:
    module = base()
    nn.init.zeros_(module.get_parameter("3.weight"))  # a fresh head holds anything
    apply_delta(module, saved(tmp_path))
    fine_tuned = tuned(1)[0]
    assert same(module, contents(fine_tuned))
    assert torch.equal(module(X), fine_tuned(X))
    assert not torch.equal(module(X), base()(X))
    assert all(p.requires_grad and p.is_leaf for p in module.parameters())


def test_deltas_of_one_base_are_switched(tmp_path: Path) -> None:
    module, before = base(), contents(base())
    paths = {seed: saved(tmp_path, seed) for seed in (1, 2)}
    for seed in (1, 2, 1):
        applied = apply_delta(module, paths[seed])
        assert same(module, contents(tuned(seed)[0]))
        applied.remove()
        assert same(module, before)


def test_counters_of_seen_batches_are_no_part_of_the_base(tmp_path: Path) -> None:
    module = base()
    module.get_buffer("1.num_batches_tracked").add_(5)
    apply_delta(module, saved(tmp_path))
    assert torch.equal(module(X), tuned(1)[0](X))


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    old = path.read_bytes()

    full_disk(monkeypatch)
    with pytest.raises(OSError, match="no space left"):
        save_delta(Tuned(tuned(2)[1]), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "positions",
    [[], [0], [32766], [32767], [32768], [0, 1, 2], [5, 65539, 65540, 200_000], [98_300, 98_301]],
)
def test_positions_are_read_as_they_were_written(positions: list[int], tmp_path: Path) -> None:
    at = torch.tensor(positions, dtype=torch.long)
    delta = Delta("", {"w": (200_001,)}, ("w",), at, torch.randn(len(at)), {})
    write_delta(delta, tmp_path / "a")
    assert torch.equal(read_delta(tmp_path / "a").positions, at)


def test_half_a_per_cent_of_23_million_weights_take_less_than_a_megabyte(tmp_path: Path) -> None:
    size = 22_713_216
    generator = torch.Generator().manual_seed(73)
    at: Tensor = torch.unique(torch.randint(size, (115_000,), generator=generator))
    assert len(at) > 0.005 * size
    values = torch.randn(len(at), generator=generator)
    write_delta(Delta("", {"w": (size,)}, ("w",), at, values, {}), tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < 700_000
    read = read_delta(tmp_path / "a")
    assert torch.equal(read.positions, at)
    assert torch.equal(read.values, values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_exact_too(dtype: torch.dtype, tmp_path: Path) -> None:
    module = base().to(dtype)
    fine_tuned, delta = tuned(3, module)
    save_delta(Tuned(delta), tmp_path / "a")
    apply_delta(module, tmp_path / "a")
    assert same(module, contents(fine_tuned))
