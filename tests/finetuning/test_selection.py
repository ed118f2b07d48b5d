"""Selections as files: exact, bound to their base, refused when damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.deltas import full_disk
from cases.selection import select
from cases.tuning import HEAD, LABELS, X, module, network
from safetensors.torch import save_file
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.files.safetensors_io import read_checked, write_checked
from ppl_fe.finetuning.selection import FORMAT
from ppl_fe.finetuning.threshold import find_knees

VECTORS = ("score", "scale_mean", "scale_sd", "r_hat", "mcse", "probability_in_top")


@pytest.fixture(scope="module")
def made() -> fe.Selection:
    return select(network(), (X, LABELS), head=HEAD, count_top=True, sparsity=0.2, seed=5)


@pytest.fixture
def path(made: fe.Selection, tmp_path: Path) -> Path:
    made.save(tmp_path / "selection.safetensors")
    return tmp_path / "selection.safetensors"


def test_a_selection_comes_back_as_it_was(made: fe.Selection, path: Path) -> None:
    other_head = module()
    nn.init.normal_(other_head.get_parameter("2.weight"))
    found = fe.load_selection(path, fe.FlatNetwork(other_head))
    assert torch.equal(found.mask, made.mask)
    assert found.mask.any()
    for name in VECTORS:
        mine, theirs = getattr(found, name), getattr(made, name)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    assert found.settings == made.settings
    for name in ("rule", "slices", "head", "notes", "base_hash", "sparsity", "knees"):
        assert getattr(found, name) == getattr(made, name), name
    assert repr(found) == repr(made)
    assert found.by_layer().equals(made.by_layer())


def test_rules_without_scales_and_other_likelihoods(tmp_path: Path) -> None:
    def mine(output: Tensor, targets: Tensor) -> Any:
        return fe.models.normal(output[:, 0], targets)

    net = network()
    data = (X, X[:, 0])
    found = select(net, data, likelihood=mine, rule="gradient_squared")
    found.save(tmp_path / "a")
    loaded = fe.load_selection(tmp_path / "a", net)
    assert loaded.scale_mean is None
    assert loaded.settings["likelihood"] == "mine"


def changed_weight() -> fe.FlatNetwork:
    net = network()
    net.anchor[1] = torch.nextafter(net.anchor[1], torch.tensor(9.0))
    return net


def part_of_it() -> fe.FlatNetwork:
    return fe.FlatNetwork(module(), parameters=["0.weight", "2.weight", "2.bias"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (changed_weight, "belongs to other weights than the network's"),
        (lambda: fe.FlatNetwork(module().double()), "other weights .*another dtype"),
        (
            lambda: fe.FlatNetwork(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))),
            r"architecture: 0.weight \(20\) is missing.* 0.weight \(24\) is unexpected",
        ),
        (part_of_it, r"architecture: 0.bias \(5\) is missing"),
    ],
)
def test_another_base_is_refused(make: Any, message: str, path: Path) -> None:
    with pytest.raises(fe.SelectionError, match=message):
        fe.load_selection(path, make())


def test_every_damaged_byte_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(fe.SelectionError):
            fe.load_selection(path, network())


def test_files_that_are_no_selections(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(fe.SelectionError, match=r"selection\.safetensors is damaged"):
        fe.load_selection(path, network())
    with pytest.raises(FileNotFoundError, match="no selection file at"):
        fe.load_selection(path.with_name("nowhere"), network())
    save_file(module().state_dict(), path)
    with pytest.raises(fe.SelectionError, match="is no selection file that this version reads"):
        fe.load_selection(path, network())
    net = network()
    tuned = fe.finetune(net, (X, LABELS), method="head", head=HEAD, num_steps=1, progress_bar=False)
    fe.save_delta(tuned, path)
    with pytest.raises(fe.SelectionError, match="its format is 'ppl-fe delta 1'"):
        fe.load_selection(path, net)


def test_an_interrupted_write_leaves_the_old_file(
    made: fe.Selection, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = path.read_bytes()

    full_disk(monkeypatch)
    with pytest.raises(OSError, match="no space left"):
        made.save(path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_selection_made_by_hand_has_no_base(made: fe.Selection, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="made by hand has no base_hash"):
        replace(made, base_hash="").save(tmp_path / "a")


def test_a_checkpoint_under_a_fresh_head() -> None:
    net = network()
    names = net.head_names(HEAD)
    body = {f"model.{n}": t + 1 for n, t in module().state_dict().items() if n not in names}
    found = net.with_state(body, names)
    for name, part in found.unflatten(found.anchor).items():
        old = net.unflatten(net.anchor)[name]
        assert torch.equal(part, old if name in names else old + 1)
    # Another task's head, in other shapes, is left alone; without `head` it is an error.
    other = body | {"model.2.weight": torch.zeros(7, 5), "model.2.bias": torch.zeros(7)}
    assert torch.equal(net.with_state(other, names).anchor, found.anchor)
    with pytest.raises(fe.CheckpointError, match=r"missing from it \(2\): 2.weight, 2.bias"):
        net.with_state(body)
    with pytest.raises(fe.CheckpointError, match="shape differs"):
        net.with_state(other)


FIELDS: dict[str, tuple[str, Any]] = {
    "no sizes": ("sizes", None),
    "sizes without names": ("sizes", [3, 4]),
    "a hash that is no text": ("base_hash", 7),
    "a head that is no list": ("head", 3),
    "notes that are no texts": ("notes", [1]),
    "settings in a list": ("settings", [1]),
    "a rule that is no text": ("method", {}),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_field_of_another_form_is_one_error_of_ours(kind: str, path: Path) -> None:
    # Written with a checksum of its own, so that only the fields can give it away.
    tensors, about = read_checked(path, FORMAT, "selection", fe.SelectionError)
    name, value = FIELDS[kind]
    write_checked(path, tensors, {**about, name: value}, FORMAT)
    with pytest.raises(fe.SelectionError, match=r"selection\.safetensors is damaged"):
        fe.load_selection(path, network())
    write_checked(path, tensors, {k: v for k, v in about.items() if k != name}, FORMAT)
    with pytest.raises(fe.SelectionError, match=r"is damaged, or no selection: KeyError"):
        fe.load_selection(path, network())


TENSORS: dict[str, dict[str, Tensor | None]] = {
    "no mask": {"indices": None},
    "no score": {"score": None},
    "a mask of numbers": {"indices": torch.tensor([0.5])},
    "a mask beyond the end": {"indices": torch.tensor([10**6])},
    "a mask before the start": {"indices": torch.tensor([-1, 2])},
    "a mask in another order": {"indices": torch.tensor([5, 2])},
    "a score of another length": {"score": torch.zeros(3)},
    "a score of whole numbers": {"r_hat": torch.zeros(1, dtype=torch.int64)},
    "one vector more": {"luck": torch.zeros(3)},
}


@pytest.mark.parametrize("kind", TENSORS)
def test_vectors_that_do_not_fit_are_refused(kind: str, path: Path) -> None:
    tensors, about = read_checked(path, FORMAT, "selection", fe.SelectionError)
    changed = {**tensors, **TENSORS[kind]}
    write_checked(path, {k: v for k, v in changed.items() if v is not None}, about, FORMAT)
    with pytest.raises(fe.SelectionError, match=r"selection\.safetensors is damaged"):
        fe.load_selection(path, network())


def test_a_mask_of_the_head_is_refused(path: Path, made: fe.Selection) -> None:
    tensors, about = read_checked(path, FORMAT, "selection", fe.SelectionError)
    head = made.slices[made.head[0]]
    write_checked(path, {**tensors, "indices": torch.tensor([head.start])}, about, FORMAT)
    with pytest.raises(fe.SelectionError, match="selects entries of the head"):
        fe.load_selection(path, network())


def test_a_curve_that_is_zero_in_the_middle_has_its_knee_among_what_is_not() -> None:
    ranked = np.concatenate([np.full(50, 1.0), np.full(450, 1e-3), np.zeros(9500)])
    assert find_knees(ranked) == [50]
    assert find_knees(np.zeros(10)) == []
