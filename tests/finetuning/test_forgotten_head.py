"""A head that `from_pretrained` made up is noticed where it would pass for a pretrained one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.bert import DATA, bert, selected
from cases.tuning import LABELS, X
from torch import nn

import ppl_fe as fe

# Imported by the tests themselves: others that are collected need not wait the seconds it takes.
pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed"
)


def loaded(folder: Path, kind: str = "AutoModelForSequenceClassification", **more: Any) -> Any:
    import transformers

    if not (folder / "config.json").exists():
        bert().get_submodule("bert").save_pretrained(folder)  # type: ignore[operator]
    return getattr(transformers, kind).from_pretrained(folder, **more)


def tune(network: fe.FlatNetwork, **options: Any) -> fe.FinetuneResult:
    given: dict[str, Any] = {"num_steps": 1, "progress_bar": False, **options}
    return fe.finetune(network, DATA, **given)


def test_a_forgotten_head_is_named_with_its_prefix(tmp_path: Path) -> None:
    network = fe.FlatNetwork(loaded(tmp_path, num_labels=3))
    assert network.fresh == ("classifier.weight", "classifier.bias")
    said = r"classifier\.weight, classifier\.bias: not in the checkpoint .* Give head='classifier'"
    with pytest.warns(UserWarning, match=said):
        selection = selected(network, head=None)
    with pytest.warns(UserWarning, match=said):
        tune(network, mask=selection.mask)
    tune(network, mask=selection.mask, head="classifier")  # without a warning
    selected(network, head="classifier")


def test_several_fresh_layers_are_several_prefixes(tmp_path: Path) -> None:
    network = fe.FlatNetwork(
        loaded(tmp_path, "BertForMaskedLM").eval(), lambda name: "embeddings" not in name
    )
    assert "cls.predictions.transform.dense.weight" in network.fresh
    module = loaded(tmp_path, num_labels=3)
    del module.bert.pooler.dense.weight._is_hf_initialized
    del module.bert.pooler.dense.bias._is_hf_initialized
    two = fe.FlatNetwork(module)
    said = r"dense\.weight, .* Give head=\['bert\.pooler', 'classifier'\]"
    with pytest.warns(UserWarning, match=said):
        selected(two, head="classifier")
    heads = ["bert.pooler", "classifier"]
    selection = selected(two, head=heads, rule=fe.Movement(num_steps=2))
    tuned = tune(two, mask=selection.mask, head=heads)
    assert list(tuned.head) == list(selection.head) == list(two.fresh)
    with pytest.raises(ValueError, match=r"head='claser' names no parameter"):
        tune(two, method="head", head=["bert.pooler", "claser"])


def test_what_is_no_head_of_transformers_is_left_alone(tmp_path: Path) -> None:
    assert fe.FlatNetwork(bert()).fresh == ()  # made from a configuration: all is its maker's

    class Wrapped(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body, self.own = body, nn.Linear(3, 2)

    module = loaded(tmp_path, num_labels=3)
    assert fe.FlatNetwork(Wrapped(module)).fresh == (
        "body.classifier.weight", "body.classifier.bias",
    )  # fmt: skip
    whole = fe.FlatNetwork(module)
    assert whole.with_state(bert().state_dict()).fresh == ()
    plain = fe.FlatNetwork(nn.Linear(4, 2))
    fe.select_parameters(plain, (X, LABELS), rule="magnitude", sparsity=0.2)


def test_a_head_of_another_task_is_fresh_too(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)  # type: ignore[operator]
    with torch.random.fork_rng():
        module = loaded(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert fe.FlatNetwork(module).fresh == ("classifier.weight", "classifier.bias")
