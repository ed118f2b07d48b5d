"""Metrics while training: of all the rows, of the weights that are kept, named where they fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases.tuning import HEAD, LABELS, X, network, tune
from torch import Tensor

import ppl_fe as fe

HELD_OUT = (X.flip(1), LABELS)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).float().mean()


def median(outputs: Tensor, targets: Tensor) -> float:
    """What no average over batches gives."""
    assert len(outputs) == len(targets) == 60
    return outputs[:, 0].median().item()


METRICS: dict[str, Any] = {"right": accuracy, "median": median}


def test_on_validation_data_where_given() -> None:
    tuned = tune(
        head=HEAD, validation=HELD_OUT, metrics=METRICS, evaluate_every=5, batch_size=7, patience=9
    )
    looked = tuned.history.dropna(subset="validation_loss")
    assert looked["step"].tolist() == [0, 5, 10, 15, 20]
    assert looked["right"].tolist() == pytest.approx(looked["validation_accuracy"].tolist())
    assert tuned.history["median"].notna().sum() == 5
    first = network()(network().anchor, HELD_OUT[0])
    assert looked["median"].iloc[0] == pytest.approx(median(first, LABELS), rel=1e-5)
    outputs = tuned.predict(HELD_OUT[0])
    expected = {name: float(metric(outputs, LABELS)) for name, metric in METRICS.items()}
    assert tuned.metrics == pytest.approx(expected, rel=1e-5)
    right = expected["right"]
    assert f"right                {right:.4g} there, on the validation data" in repr(tuned)


def test_on_the_training_data_otherwise_and_nothing_else_changes() -> None:
    plain = tune(head=HEAD)
    tuned = tune(head=HEAD, metrics={"right": accuracy})
    assert torch.equal(tuned.weights, plain.weights)
    looks = tuned.history.dropna(subset="right").set_index("step")["right"]
    assert list(looks.index) == [0, 3, 6, 9, 12, 15, 18, 20]  # 60 rows in batches of 16
    assert looks[20] == tuned.metrics["right"] == accuracy(tuned.predict(X), LABELS).item()
    assert tuned.history["validation_loss"].isna().all()
    assert tuned.history["loss"].dropna().tolist() == plain.history["loss"].tolist()
    assert "there, on the training data" in repr(tuned)
    assert plain.metrics == {}


def test_a_resumed_run_has_them_all(tmp_path: Path) -> None:
    call: dict[str, Any] = {"head": HEAD, "metrics": METRICS, "save_to": tmp_path / "run"}
    whole = tune(**call)
    again = tune(**call, resume=True)
    assert again.history.equals(whole.history)
    assert again.metrics == whole.metrics
    with pytest.raises(ValueError, match="metrics"):
        tune(**{**call, "metrics": {"right": accuracy}}, resume=True)


def test_the_bar_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    tuned = tune(head=HEAD, metrics={"right": accuracy}, progress_bar=True)
    assert f"right={tuned.metrics['right']:.4g}" in capsys.readouterr().err


def broken(outputs: Tensor, targets: Tensor) -> float:
    raise KeyError("no such class")


WRONG: list[tuple[Any, type[Exception], str]] = [
    ({"f1": broken}, ValueError, r"metrics\['f1'\] failed on outputs of shape \(60, 2\).*KeyError"),
    ({"f1": lambda out, y: out}, ValueError, r"metrics\['f1'\] gave a Tensor of shape \(60, 2\)"),
    ({"f1": lambda out, y: None}, ValueError, r"metrics\['f1'\] gave a NoneType, where one number"),
    ({"loss": accuracy}, ValueError, "the history has a column 'loss' of its own"),
    ({"f1": "macro"}, TypeError, "name -> function of .*, got 'f1': str"),
    ({1: accuracy}, TypeError, "name -> function of .*, got 1: function"),
]


@pytest.mark.parametrize(("metrics", "kind", "message"), WRONG)
def test_a_metric_that_fails_is_named_before_any_step(
    metrics: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        tune(head=HEAD, metrics=metrics)


def test_outputs_of_different_shapes() -> None:
    def ragged(inputs: Tensor) -> Tensor:
        return torch.zeros(len(inputs), 1 + len(inputs))

    from ppl_fe.finetuning.train.looks import _whole

    with pytest.raises(ValueError, match=r"of equal shape.* are \(2, 3\) and \(1, 2\); pad"):
        _whole([(ragged(X[:2]), LABELS[:2]), (ragged(X[:1]), LABELS[:1])])


def test_a_loss_that_is_not_finite_is_the_error_and_not_the_metric() -> None:
    def strict(outputs: Tensor, targets: Tensor) -> float:
        assert outputs.isfinite().all()
        return 1.0

    call: dict[str, Any] = {"head": HEAD, "metrics": {"f1": strict}, "learning_rate": 1e38}
    with pytest.raises(fe.DivergedError, match="the validation loss is ") as failed:
        tune(validation=HELD_OUT, evaluate_every=1, weight_decay=1.0, **call)
    assert failed.value.tuned.metrics == {"f1": 1.0}  # of the start
