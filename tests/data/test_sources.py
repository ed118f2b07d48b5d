"""Data: every usual form becomes checked tensors or checked endless batches."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from cases.data import Items, Stream, X, Y, loader
from torch import Tensor
from torch.utils.data import (
    Subset,
    TensorDataset,
)

from ppl_fe.data.digests import data_digests
from ppl_fe.data.sources import LoaderData, TensorData, as_data, check_labels


def tensors(data: Any, **options: Any) -> TensorData:
    result = as_data(data, **options)
    assert isinstance(result, TensorData)
    return result


def loaded(data: Any, **options: Any) -> LoaderData:
    result = as_data(data, **options)
    assert isinstance(result, LoaderData)
    return result


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [X, Y],
        (X.numpy(), Y.numpy()),
        TensorDataset(X, Y),
        Items(list(zip(X, Y, strict=True))),
        Items([(x.numpy(), int(y)) for x, y in zip(X, Y, strict=True)]),
        Subset(TensorDataset(X, Y), range(10)),
        TensorData(X, Y, 10),
    ],
)
def test_every_form_of_pairs(data: Any) -> None:
    result = tensors(data)
    assert isinstance(result.inputs, Tensor)
    assert torch.equal(result.inputs, X)
    assert torch.equal(result.targets, Y)
    assert result.targets.dtype == torch.int64
    assert result.num_data == 10


@pytest.mark.parametrize("key", ["labels", "targets"])
def test_mappings_go_by_keyword(key: str) -> None:
    ids, mask = Y.view(10, 1), torch.ones(10, 1)
    items = [{"ids": [int(i)], "mask": m, key: i} for i, m in zip(Y, mask, strict=True)]
    pair = ({"ids": ids, "mask": mask}, Y)
    for data in ({"ids": ids, "mask": mask, key: Y}, pair, list(pair), Items(items), items):
        result = tensors(data)
        assert isinstance(result.inputs, dict)
        assert list(result.inputs) == ["ids", "mask"]
        assert torch.equal(result.inputs["ids"], ids)
        assert torch.equal(result.inputs["mask"], mask)
        assert torch.equal(result.targets, Y)


def test_dtypes_stay_and_python_floats_take_the_default() -> None:
    assert tensors((X.double(), Y)).inputs.dtype == torch.float64  # type: ignore[union-attr]
    assert tensors((X.numpy().astype(np.float64), Y)).inputs.dtype == torch.float64  # type: ignore[union-attr]
    result = tensors(Items([(x.double(), 0.5) for x in X]))
    assert result.inputs.dtype == torch.float64  # type: ignore[union-attr]
    assert result.targets.dtype == torch.float32


def test_awkward_arrays_are_copied() -> None:
    frozen = X.numpy().copy()
    frozen.flags.writeable = False
    assert torch.equal(tensors((frozen, Y)).inputs, X)  # type: ignore[arg-type]
    assert torch.equal(tensors((X.numpy()[::-1], Y)).inputs, X.flip(0))  # type: ignore[arg-type]
    assert torch.equal(tensors(Items([(row, 0) for row in frozen])).inputs, X)  # type: ignore[arg-type]


def test_inputs_are_detached() -> None:
    inputs = tensors((X.clone().requires_grad_(), Y)).inputs
    assert isinstance(inputs, Tensor)
    assert not inputs.requires_grad


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((X,), ValueError, "got 1 entries"),
        ((X, Y, Y), ValueError, "got 3 entries"),
        (TensorDataset(X), ValueError, "got 1 entries"),
        (X, TypeError, r"lengths disagree|must be|data is a Tensor"),
        ("text", TypeError, "data is a str|must be"),
        (3, TypeError, "data is a int"),
        (Stream(), TypeError, "data is a Stream.*knows its length"),
        ((X, Y[:9]), ValueError, r"lengths disagree: \{'inputs': 10, 'targets': 9\}"),
        ({"a": X, "b": X[:3], "labels": Y}, ValueError, r"\{'a': 10, 'b': 3, 'targets': 10\}"),
        ((X[:0], Y[:0]), ValueError, "empty"),
        (Items([]), ValueError, "Items is empty"),
        ((torch.tensor(1.0), Y), ValueError, "inputs is a scalar"),
        ((X.tolist(), Y), TypeError, "inputs must be a tensor or numpy array, got list"),
        ((X, np.array(["a"] * 10)), TypeError, "targets is an array of dtype"),
        ({"a": X, "b": "text", "labels": Y}, TypeError, "'b' must be a tensor .* got str"),
        ({"a": X}, ValueError, "exactly one of the keys 'labels' and 'targets'"),
        ({"a": X, "labels": Y, "targets": Y}, ValueError, "exactly one of the keys"),
        ({"labels": Y}, ValueError, "no inputs, only 'labels'"),
        (({}, Y), ValueError, "there are no inputs"),
        (({"targets": X}, Y), ValueError, "must not be called 'targets'"),
        (Items([X[0]]), TypeError, "item 0 of the data set must be"),
        (Items([(X[0], 0), (X[1, :1], 0)]), ValueError, r"item 1 .* inputs has shape \(1,\)"),
        (Items([(X[0], 0), ("text", 0)]), TypeError, "item 1 .* inputs is a str"),
        (Items([{"a": 1, "labels": 0}, {"b": 1, "labels": 0}]), ValueError, "item 1 .* other keys"),
        (Items([{"a": 1, "labels": 0}, (1, 0)]), ValueError, "item 1 .* other keys"),
    ],
)
def test_bad_forms_are_refused(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_data(data)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_counted_and_located(bad: float) -> None:
    inputs = X.clone()
    inputs[4, 1] = inputs[7, 0] = bad
    expected = rf"inputs has 2 NaN or infinite values, the first \({bad}\) at index \(4, 1\)"
    with pytest.raises(ValueError, match=expected):
        as_data((inputs, Y))
    with pytest.raises(ValueError, match=r"pixels has 2 NaN .* \(4, 1\)"):
        as_data({"pixels": inputs, "labels": Y})
    with pytest.raises(ValueError, match=r"targets has 2 NaN .* \(4, 1\)"):
        as_data((X, inputs))


def test_tensor_data_checks_itself() -> None:
    with pytest.raises(ValueError, match="num_data is 9, but the tensors hold 10 rows"):
        TensorData(X, Y, 9)
    with pytest.raises(TypeError, match="inputs must be a tensor, got list"):
        TensorData([1.0], Y, 10)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        TensorData(X, Y, 10).num_data = 3  # type: ignore[misc]


def test_batch_size_is_given_once() -> None:
    assert tensors((X, Y), batch_size=4).num_data == 10
    for none in (0, 2.5, True, "all"):
        with pytest.raises(ValueError, match="batch_size must be a positive integer or None"):
            as_data((X, Y), batch_size=none)  # type: ignore[arg-type]
    assert loaded(loader(), batch_size=4).batch_size == 4
    with pytest.raises(ValueError, match=r"batch_size=5 .* brings its own, 4"):
        as_data(loader(), batch_size=5)
    data = loaded(loader())
    assert as_data(data) is data


def test_labels_in_range() -> None:
    check_labels(torch.tensor([[0, 2], [1, 0]]), 3)
    check_labels(torch.tensor([0, 2], dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="index 2 is 3, allowed are 0 to 2"):
        check_labels(torch.tensor([0, 2, 3, -1]), 3)
    with pytest.raises(ValueError, match=r"index \(1, 0\) is -100, allowed are 0 to 2"):
        check_labels(torch.tensor([[0, 2], [-100, 5]]), 3)
    for wrong in (torch.tensor([0.0]), torch.tensor([True])):
        with pytest.raises(TypeError, match="integer class labels"):
            check_labels(wrong, 3)


def test_a_data_set_is_known_by_its_bytes_and_a_loader_by_what_it_repeats() -> None:
    """What differs from one reading to the next, as an augmented image does, tells nothing."""
    one, other = (TensorData(torch.full((3, 2), v), torch.zeros(3), 3) for v in (1.0, 2.0))
    first, second = data_digests("data", one), data_digests("data", other)
    assert first["data targets"] == second["data targets"]
    assert first["data inputs"] != second["data inputs"]
    named = as_data({"ids": X, "labels": Y})
    assert sorted(data_digests("task", named)) == ["task 'ids'", "task targets"]

    readings = count(1)

    def noisy(batch: list[Any]) -> tuple[Tensor, Tensor]:
        rows = torch.stack([inputs for inputs, _ in batch])
        return rows + next(readings), torch.stack([label for _, label in batch])

    steady, augmented = (
        data_digests("data", as_data(loader(**given))) for given in ({}, {"collate_fn": noisy})
    )
    assert list(steady) == ["data inputs", "data targets"]
    assert augmented == {"data targets": steady["data targets"]}
