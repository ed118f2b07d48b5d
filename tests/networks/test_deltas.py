"""Delta files: exact, small, switched at will, written whole or not at all."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.deltas import Tuned, X, base, contents, full_disk, nudge, same, saved, tuned
from safetensors.torch import save_file
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.files.safetensors_io import read_checked, write_checked
from ppl_fe.networks.delta_format import FORMAT, Delta, DeltaError, read_delta, write_delta
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


def shift(module: nn.Module) -> None:
    """Change all weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)


def test_a_delta_is_off_within_a_block_and_on_again_after_it(tmp_path: Path) -> None:
    module, before, after = base(), contents(base()), contents(tuned(1)[0])
    applied = apply_delta(module, saved(tmp_path))
    with applied.disabled():
        assert same(module, before)
    assert same(module, after)
    with pytest.raises(KeyError, match="of the block"), applied.disabled():
        raise KeyError("of the block")
    assert same(module, after)
    with pytest.raises(RuntimeError, match=r"changed within the block"), applied.disabled():
        shift(module)
    with pytest.raises(RuntimeError, match="does not hold this delta's values"), applied.disabled():
        pass


def several(folder: Path, module: nn.Module) -> fe.AppliedDelta:
    return apply_delta(module, {f"task {seed}": saved(folder, seed) for seed in (1, 2, 3)})


def test_deltas_by_name_are_switched(tmp_path: Path) -> None:
    module, before = base(), contents(base())
    nn.init.constant_(module.get_parameter("3.weight"), float("nan"))  # a fresh head
    fresh = contents(module)
    applied = several(tmp_path, module)
    assert (applied.names, applied.active) == (("task 1", "task 2", "task 3"), "task 1")
    assert repr(applied) == "AppliedDelta('task 1' on, 'task 2', 'task 3', of Sequential)"
    assert same(module, contents(tuned(1)[0]))
    for seed in (3, 2, 2, 1):
        applied.use(f"task {seed}")
        assert same(module, contents(tuned(seed)[0]))
        with applied.disabled():
            assert applied.active is None
            body = {name: tensor for name, tensor in before.items() if "3." not in name}
            assert all(torch.equal(module.state_dict()[n], t) for n, t in body.items())
        assert applied.active == f"task {seed}"
        assert same(module, contents(tuned(seed)[0]))
    applied.remove()
    assert applied.names == ()
    held = contents(module)
    assert all(torch.equal(held[n].view(torch.uint8), fresh[n].view(torch.uint8))
               for n in held if held[n].ndim)  # fmt: skip


@pytest.mark.parametrize("order", list(permutations((1, 2, 3))))
def test_deltas_are_removed_in_any_order(order: tuple[int, ...], tmp_path: Path) -> None:
    module, before = base(), contents(base())
    applied = several(tmp_path, module)
    applied.use("task 2")
    for count, seed in enumerate(order):
        is_off = 2 in order[:count]
        assert same(module, before if is_off else contents(tuned(2)[0]))
        applied.remove(f"task {seed}")
        with pytest.raises(ValueError, match=f"no delta is called 'task {seed}'"):
            applied.use(f"task {seed}")
    assert same(module, before)


def test_one_of_several_deltas_of_another_base(tmp_path: Path) -> None:
    module = other_weight()
    before = contents(module)
    fits = tmp_path / "fits"
    save_delta(Tuned(tuned(1, other_weight())[1]), fits)
    with pytest.raises(DeltaError, match=r"2\.safetensors belongs to other weights"):
        apply_delta(module, {"fits": fits, "another": saved(tmp_path, 2)})
    assert same(module, before)
    with pytest.raises(ValueError, match="path names no delta"):
        apply_delta(module, {})


def test_switching_refuses_weights_that_have_changed_since(tmp_path: Path) -> None:
    module = base()
    applied = several(tmp_path, module)
    for call in (applied.use, applied.remove):
        with pytest.raises(ValueError, match=r"no delta is called 'tsk 2'; did you mean 'task 2'"):
            call("tsk 2")
    with pytest.raises(RuntimeError, match=r"changed within the block"), applied.disabled():
        shift(module)
    changed = contents(module)
    with pytest.raises(RuntimeError, match="the weights have changed since"):
        applied.use("task 2")
    assert same(module, changed)
    assert applied.active is None
    with pytest.raises(RuntimeError, match="the weights have changed since"), applied.disabled():
        pass


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


def test_a_second_delta_is_refused_until_the_first_is_off(tmp_path: Path) -> None:
    module = base()
    first = apply_delta(module, saved(tmp_path, 1))
    with pytest.raises(DeltaError, match=r"other weights .* remove\(\) any delta applied before"):
        apply_delta(module, saved(tmp_path, 2))
    assert same(module, contents(tuned(1)[0]))
    first.remove()
    with pytest.raises(RuntimeError, match="removed already, or the weights have changed"):
        first.remove()
    assert same(module, contents(base()))


def test_removal_refuses_weights_that_have_changed_since(tmp_path: Path) -> None:
    module = base()
    applied = apply_delta(module, saved(tmp_path))
    with torch.no_grad():
        module.get_parameter("1.bias")[0] += 1
    changed = contents(module)
    with pytest.raises(RuntimeError, match="load the pretrained checkpoint again"):
        applied.remove()
    assert same(module, changed)


def other_weight() -> nn.Module:
    module = base()
    nudge(module, "2.weight")
    return module


def other_buffer() -> nn.Module:
    module = base()
    module.get_buffer("1.running_var")[2] *= 1.5
    return module


WRONG = {
    "one weight, one bit": (other_weight, "belongs to other weights"),
    "one statistic": (other_buffer, "belongs to other weights"),
    "another dtype of the body": (lambda: _half_body(), "other weights .*another dtype"),
    "another head": (lambda: base(3), r"head's 3.weight is .*\(3, 6\), the delta has .*\(2, 6\)"),
    "another dtype of the head": (lambda: _half_head(), "head's 3.weight is torch.float16"),
    "no head": (lambda: base()[:3], "the head's 3.weight is missing"),
    "another shape": (
        lambda: nn.Sequential(nn.Linear(5, 6), *list(base())[1:]),
        r"architecture: 0.weight is \(6, 5\), the delta has \(6, 4\)",
    ),
    "another layer": (
        lambda: nn.Sequential(*base(), nn.Linear(2, 2)),
        "4.weight is unexpected, 4.bias is unexpected",
    ),
    "without statistics": (
        lambda: nn.Sequential(base()[0], nn.LayerNorm(6), *list(base())[2:]),
        "1.running_mean is missing",
    ),
}


def _half_body() -> nn.Module:
    module = base().half()
    module[3].float()
    return module


def _half_head() -> nn.Module:
    module = base()
    module[3].half()
    return module


@pytest.mark.parametrize("kind", WRONG)
def test_another_base_is_refused_and_left_as_it_was(kind: str, tmp_path: Path) -> None:
    make, message = WRONG[kind]
    module, path = make(), saved(tmp_path)
    before, file = contents(module), path.read_bytes()
    with pytest.raises(DeltaError, match=message):
        apply_delta(module, path)
    assert same(module, before)
    assert path.read_bytes() == file


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path, module = saved(tmp_path), base()
    whole, before = path.read_bytes(), contents(module)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DeltaError):
            apply_delta(module, path)
    assert same(module, before)


@pytest.mark.parametrize("length", [0, 4, 100, -100, -1])
def test_a_truncated_file_is_refused(length: int, tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DeltaError, match=r"1\.safetensors is damaged"):
        apply_delta(base(), path)


def test_files_that_are_no_deltas_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no delta file at .*a\.safetensors"):
        apply_delta(base(), path)
    save_file(base().state_dict(), path)
    with pytest.raises(DeltaError, match="is no delta file that this version reads"):
        apply_delta(base(), path)
    save_file({"values": torch.ones(1)}, path, {"format": "ppl-fe delta 9"})
    with pytest.raises(DeltaError, match=r"its format is 'ppl-fe delta 9', not 'ppl-fe delta 1'"):
        apply_delta(base(), path)
    path.write_text("hello, this is a text file")
    with pytest.raises(DeltaError, match="or no safetensors file"):
        apply_delta(base(), path)


def test_positions_outside_the_tensors_are_refused(tmp_path: Path) -> None:
    delta = tuned(1)[1]
    delta.positions[-1] = 60  # the two tensors hold 24 + 36
    save_delta(Tuned(delta), tmp_path / "a")
    with pytest.raises(DeltaError, match="positions and values do not fit"):
        apply_delta(base(), tmp_path / "a")


FIELDS: dict[str, tuple[str, Any]] = {
    "no hash": ("base_hash", None),
    "a hash that is no text": ("base_hash", 7),
    "shapes in a list": ("shapes", [1, 2]),
    "a shape that is no list": ("shapes", {"0.weight": 24}),
    "a negative shape": ("shapes", {"0.weight": [-6, 4]}),
    "a tensor that is not there": ("partly", ["0.weight", "9.weight"]),
    "a tensor named twice": ("partly", ["0.weight", "0.weight"]),
    "names that are no list": ("partly", 3),
    "a head of the base": ("head", ["0.weight"]),
    "a head without tensors": ("head", ["3.weight", "3.bias", "4.weight"]),
    "no head": ("head", []),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_field_of_another_form_is_one_error_of_ours(kind: str, tmp_path: Path) -> None:
    # Written with a checksum of its own, so that only the fields can give it away.
    path, module = saved(tmp_path), base()
    tensors, about = read_checked(path, FORMAT, "delta", DeltaError)
    name, value = FIELDS[kind]
    write_checked(path, tensors, {**about, name: value}, FORMAT)
    before = contents(module)
    with pytest.raises(DeltaError, match=r"1\.safetensors"):
        apply_delta(module, path)
    assert same(module, before)
    write_checked(path, tensors, {k: v for k, v in about.items() if k != name}, FORMAT)
    with pytest.raises(DeltaError, match=r"is damaged, or no delta: KeyError"):
        apply_delta(module, path)


TENSORS: dict[str, dict[str, Tensor | None]] = {
    "NaN in the values": {"values": torch.full((14,), float("nan"))},
    "infinity in the head": {"whole.3.bias": torch.tensor([0.0, float("inf")])},
    "values of another dtype": {"values": torch.zeros(14, dtype=torch.float64)},
    "whole numbers": {"values": torch.zeros(14, dtype=torch.int64)},
    "values in two dimensions": {"values": torch.zeros(2, 7)},
    "steps of another dtype": {"steps": torch.zeros(14)},
    "steps that go back": {"steps": torch.full((14,), -3, dtype=torch.int16)},
    "no steps": {"steps": None},
    "a whole tensor of another shape": {"whole.1.bias": torch.zeros(1)},
    "a whole tensor of another dtype": {"whole.1.bias": torch.zeros(6, dtype=torch.float64)},
    "a whole tensor of no base": {"whole.9.bias": torch.zeros(6)},
    "a statistic as a whole tensor": {"whole.1.running_mean": torch.zeros(6)},
    "one tensor more": {"momentum": torch.zeros(6)},
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_cannot_be_written_are_refused_before_any_is(
    kind: str, tmp_path: Path
) -> None:
    path, module = saved(tmp_path), base()
    tensors, about = read_checked(path, FORMAT, "delta", DeltaError)
    changed = {**tensors, **TENSORS[kind]}
    kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
    write_checked(path, kept, about, FORMAT)
    before = contents(module)
    with pytest.raises(DeltaError, match=r"1\.safetensors"):
        apply_delta(module, path)
    assert same(module, before)


def test_a_module_that_refuses_a_value_halfway_is_left_as_it_was(tmp_path: Path) -> None:
    path, module = saved(tmp_path), base()
    before = contents(module)
    head = module.get_parameter("3.weight")  # one number seen everywhere: it cannot be written
    head.data = torch.zeros(1).expand(2, 6)
    with pytest.raises(RuntimeError, match="single memory location"):
        apply_delta(module, path)
    head.data = before["3.weight"]
    assert same(module, before)
