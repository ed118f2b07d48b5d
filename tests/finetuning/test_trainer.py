"""`MaskedTraining` under Hugging Face's Trainer, on a BERT of six thousand random weights."""

from __future__ import annotations

import copy
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases.bert import DATA, HEAD, INPUTS, NUM_ROWS, ROWS, bert, selected
from cases.deltas import nudge
from torch import Tensor, nn

import ppl_fe as fe

# Imported by the tests themselves: others that are collected need not wait the seconds it takes.
pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("accelerate") is None,
    reason="transformers, or accelerate, which Trainer needs, is not installed",
)


def trainer(model: nn.Module | None, callback: Any, folder: Path, **options: Any) -> Any:
    import transformers

    own = ("model_init", "eval_dataset", "compute_metrics")
    extra = {name: options.pop(name) for name in own if name in options}
    given: dict[str, Any] = {
        "max_steps": 20,
        "per_device_train_batch_size": 8,
        "weight_decay": 0.1,
        "learning_rate": 1e-2,
        "logging_steps": 5,
    }
    args = transformers.TrainingArguments(
        output_dir=str(folder), report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True, **{**given, **options},
    )  # fmt: skip
    return transformers.Trainer(model, args, train_dataset=ROWS, callbacks=[callback], **extra)


def frozen(network: fe.FlatNetwork, mask: Tensor) -> Tensor:
    left = ~mask
    for name in network.head_names(HEAD):
        left[network.slices[name]] = False
    return left


@pytest.mark.parametrize(
    "options",
    [
        {"optim": "adamw_torch"},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"optim": "adafactor"},
        {"gradient_accumulation_steps": 2},
        {"bf16": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_frozen_entries_stay_and_the_delta_gives_the_tuned_network(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model = bert()
    network = fe.FlatNetwork(model)
    selection = selected(network, rule=fe.Movement(num_steps=3))
    masked = fe.MaskedTraining(selection)
    trainer(model, masked, tmp_path / "run", **options).train()
    tuned = masked.tuned(network)
    left = frozen(network, selection.mask)
    assert torch.equal(tuned.weights[left], network.anchor[left])
    assert (tuned.weights != network.anchor)[selection.mask].float().mean() > 0.5
    assert tuned.step == 20
    assert tuned.history["step"].tolist() == [5, 10, 15, 20]
    assert tuned.history["loss"].notna().all()

    fe.save_delta(tuned, tmp_path / "task.safetensors")
    other_head = bert()  # the same base under another head
    nn.init.normal_(other_head.get_parameter("classifier.weight"))
    fe.apply_delta(other_head, tmp_path / "task.safetensors")
    same = bert()  # as Trainer leaves its own in autocast, where that was on
    same.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits = same.eval()(**INPUTS).logits
        assert torch.equal(other_head.eval()(**INPUTS).logits, logits)
        assert torch.equal(network(tuned.weights, INPUTS), logits)
        assert not torch.equal(bert().eval()(**INPUTS).logits, logits)


def test_it_is_the_training_of_finetune_where_the_rest_is_equal(tmp_path: Path) -> None:
    model = bert(dropout=0.0)
    network = fe.FlatNetwork(model)
    selection = selected(network)
    masked = fe.MaskedTraining(selection)
    trainer(
        model, masked, tmp_path, max_steps=5, per_device_train_batch_size=NUM_ROWS, optim="sgd",
        optim_args="momentum=0.9", learning_rate=0.1, lr_scheduler_type="constant",
        max_grad_norm=0.0, weight_decay=0.0,
    ).train()  # fmt: skip
    own = fe.finetune(
        network, DATA, mask=selection.mask, head=HEAD, optimizer="sgd", learning_rate=0.1,
        schedule="constant", num_steps=5, batch_size=NUM_ROWS,
        progress_bar=False,
    )  # fmt: skip
    moved = own.weights - network.anchor
    assert moved.abs().max() > 1e-3
    found = masked.tuned(network).weights - network.anchor
    torch.testing.assert_close(found, moved, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_a_step_is_that_of_the_masked_gradient_clipped(accumulated: int, tmp_path: Path) -> None:
    model, decay = bert(dropout=0.0), 0.1
    network = fe.FlatNetwork(model)
    selection = selected(network)
    batch = copy.deepcopy(model).eval()
    batch(**DATA).loss.backward()
    given = {name: tensor.grad for name, tensor in batch.named_parameters()}
    gradient = network.flatten({n: grad for n, grad in given.items() if grad is not None})
    gradient[frozen(network, selection.mask)] = 0.0
    clip = gradient.norm().item() / 2
    masked = fe.MaskedTraining(selection)
    trainer(
        model, masked, tmp_path, max_steps=1, optim="sgd", learning_rate=1.0, weight_decay=decay,
        lr_scheduler_type="constant", max_grad_norm=clip, logging_steps=1,
        gradient_accumulation_steps=accumulated,
        per_device_train_batch_size=NUM_ROWS // accumulated,
    ).train()  # fmt: skip
    moved = masked.tuned(network).weights - network.anchor
    decayed = torch.zeros_like(gradient)
    for name, where in network.slices.items():  # Trainer decays neither biases nor norms
        if not name.endswith("bias") and "LayerNorm" not in name:
            decayed[where] = decay * network.anchor[where]
    decayed[frozen(network, selection.mask)] = 0.0
    expected = -clip * gradient / gradient.norm() - decayed
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=2e-6)


def test_the_optimiser_knows_only_tensors_with_trained_entries(tmp_path: Path) -> None:
    model = bert()
    network = fe.FlatNetwork(model)
    selection = selected(network)
    made = trainer(model, fe.MaskedTraining(selection), tmp_path, max_steps=1)
    made.train()
    table = selection.by_layer()["selected"]
    names = {name for name, count in table.items() if count} | set(selection.head)
    assert 2 < len(names) < len(network.names)
    known = {id(t) for group in made.optimizer.param_groups for t in group["params"]}
    assert known == {id(t) for name, t in model.named_parameters() if name in names}


def test_what_is_no_part_of_the_vector_stays_too(tmp_path: Path) -> None:
    model = bert()
    network = fe.FlatNetwork(model, parameters=lambda name: "layer.1" in name or HEAD in name)
    masked = fe.MaskedTraining(selected(network))
    trainer(model, masked, tmp_path, max_steps=2).train()
    assert (masked.tuned(network).weights != network.anchor).any()
    before = bert().state_dict()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items() if "layer.0" in n)


def test_a_model_made_by_trainer_itself(tmp_path: Path) -> None:
    network = fe.FlatNetwork(bert())
    selection = selected(network)
    masked = fe.MaskedTraining(selection)
    made = trainer(None, masked, tmp_path, model_init=lambda: bert(), max_steps=2)
    made.train()
    tuned, left = masked.tuned(network), frozen(network, selection.mask)
    assert torch.equal(tuned.weights, network.flatten(dict(made.model.named_parameters())).detach())
    assert torch.equal(tuned.weights[left], network.anchor[left])
    assert (tuned.weights != network.anchor).any()


def one_bit_off() -> nn.Module:
    model = bert()
    nudge(model, "bert.encoder.layer.0.output.dense.weight")
    return model


def with_batch_norm() -> nn.Module:
    model = bert()
    model.add_module("norm", nn.BatchNorm1d(2))
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.ModuleDict({"inner": bert()}), "another model than Trainer's ModuleDict"),
        (lambda: bert(seed=5), "weights or buffers are not those"),
        (one_bit_off, "weights or buffers are not those"),
        (lambda: bert().half(), "another dtype"),
        (with_batch_norm, "running statistics of norm"),
    ],
)
def test_another_model_is_refused_before_training(make: Any, message: str, tmp_path: Path) -> None:
    masked = fe.MaskedTraining(selected(fe.FlatNetwork(bert())))
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        trainer(model, masked, tmp_path)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_what_cannot_be_kept_is_refused() -> None:
    masked = fe.MaskedTraining(selected(fe.FlatNetwork(bert())))
    with pytest.raises(ValueError, match="without DeepSpeed and FSDP"):
        masked.on_init_end(SimpleNamespace(fsdp="full_shard"), None, None, model=bert())


def test_weights_that_changed_behind_its_back(tmp_path: Path) -> None:
    model = bert()
    network = fe.FlatNetwork(model)
    masked = fe.MaskedTraining(selected(network))
    with pytest.raises(RuntimeError, match=r"call trainer.train\(\) first"):
        masked.tuned(network)
    made = trainer(model, masked, tmp_path, max_steps=1)
    weight = model.get_parameter("bert.pooler.dense.bias")
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(fe.SelectionError, match="before training"):
        made.train()
    with torch.no_grad():
        weight.copy_(before)
    made.train()
    with pytest.raises(fe.SelectionError, match="not the pretrained one"):
        masked.tuned(fe.FlatNetwork(bert(seed=5)))
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(fe.SelectionError, match="after training"):
        masked.tuned(network)


def test_tokenised_sets_go_straight_into_the_selection() -> None:
    import transformers

    network = fe.FlatNetwork(bert())
    encoded = transformers.BatchEncoding(DATA)
    lists = [{name: tensor.tolist() for name, tensor in row.items()} for row in ROWS]
    found = [
        fe.select_parameters(network, data, head=HEAD, rule="gradient_squared")
        for data in (DATA, encoded, ROWS, lists)
    ]
    for other in found[1:]:
        assert torch.equal(other.mask, found[0].mask)
    with pytest.raises(TypeError, match="'sentence' is a str that is no tensor"):
        fe.select_parameters(network, [{**row, "sentence": "x"} for row in lists], head=HEAD)


def test_numbers_of_compute_metrics_are_kept(tmp_path: Path) -> None:
    network = fe.FlatNetwork(bert())
    masked = fe.MaskedTraining(selected(network))
    trainer(
        bert(), masked, tmp_path, max_steps=4, logging_steps=10, eval_strategy="steps",
        eval_steps=2, eval_dataset=ROWS,
        compute_metrics=lambda found: {"f1": len(found.label_ids) / 64, "accuracy": 0.25},
    ).train()  # fmt: skip
    tuned = masked.tuned(network)
    assert tuned.metrics == {"f1": 0.5, "accuracy": 0.25}
    assert tuned.history["step"].tolist() == [2, 4]
    assert tuned.history["validation_accuracy"].tolist() == [0.25, 0.25]
    assert "weights of step      4 of 4" in repr(tuned)
    assert "nan" not in repr(tuned)


def test_a_misspelt_argument_is_named() -> None:
    with pytest.raises(TypeError, match=r"MaskedTraining\(\) has no argument 'selected'"):
        fe.MaskedTraining(selected=None)  # type: ignore[call-arg]


def test_the_history_has_what_trainer_evaluated_and_the_step_that_it_kept() -> None:
    network = fe.FlatNetwork(bert())
    training = fe.MaskedTraining(selected(network))
    args, log = SimpleNamespace(load_best_model_at_end=True), [
        {"step": 5, "loss": 1.5, "learning_rate": 0.1},
        {"step": 5, "eval_loss": 1.25, "eval_accuracy": 0.5},
        {"step": 10, "loss": 1.0, "learning_rate": 0.05},
        {"step": 10, "eval_loss": 1.75, "eval_accuracy": 0.25},
    ]  # fmt: skip
    state = SimpleNamespace(global_step=10, best_global_step=5, log_history=log)
    training.on_train_end(args, state, None)
    history = training._history
    assert history is not None
    assert training._step == 5
    assert history["step"].tolist() == [5, 10]
    assert history["validation_loss"].tolist() == [1.25, 1.75]
    assert history["validation_accuracy"].tolist() == [0.5, 0.25]


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "ppl_fe.finetuning.train.huggingface", raising=False)
    with pytest.raises(ImportError, match=r"needs transformers: pip install 'ppl-fe\[hugging"):
        import_module("ppl_fe.finetuning.train.huggingface")
