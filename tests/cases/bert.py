"""A BERT of six thousand random weights, built from a configuration, and rows for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import ppl_fe as fe

HEAD = "classifier"
NUM_ROWS = 32
IDS = torch.randint(0, 50, (NUM_ROWS, 10), generator=torch.Generator().manual_seed(101))
DATA = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS[:, 0] % 3}
ROWS = [{name: tensor[i] for name, tensor in DATA.items()} for i in range(NUM_ROWS)]
INPUTS = {name: tensor for name, tensor in DATA.items() if name != "labels"}


def bert(seed: int = 102, dropout: float = 0.1) -> nn.Module:
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=20, num_labels=3,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )  # fmt: skip
        module: nn.Module = transformers.BertForSequenceClassification(config)
    return module


def selected(network: fe.FlatNetwork, **options: Any) -> fe.Selection:
    given: dict[str, Any] = {"rule": "magnitude", "sparsity": 0.02, "head": HEAD, **options}
    return fe.select_parameters(network, DATA, progress_bar=False, **given)
