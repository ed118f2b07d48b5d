"""What files from the Hugging Face hub hold beside a module's own tensors, or in their place.

Old files store constants that the module builds by itself; adapters and fused experts come under
names that no renaming leads to, so that the error says what to do with them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

# Of one expert each, up to transformers 4; of all experts of a layer together, since 5.
ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
ALL_EXPERTS = re.compile(r"\.experts\.[a-z_]+$")
ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|ia3_l|shira_weight)\b")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
MERGE_ADAPTER = (
    "an adapter alone, without its base model: load both with peft, "
    "PeftModel.from_pretrained(base, folder).merge_and_unload(), and give its state_dict()"
)


def is_rebuilt(name: str, tensor: Tensor) -> bool:
    """Recognise a constant that old files store and newer releases of transformers build.

    Both its name and its values have to be those of a causal mask, of the value that fills one, of
    position ids or of rotary frequencies; a trained tensor of such a name has other values.

    Args:
        name: of an entry that the network has no place for.
        tensor: the entry.

    Example:
        >>> is_rebuilt("h.0.attn.bias", torch.ones(1, 1, 4, 4).tril())
        True
        >>> is_rebuilt("h.0.attn.bias", torch.randn(4))
        False
    """
    last = name.rpartition(".")[2]
    if tensor.is_meta or tensor.layout != torch.strided or tensor.numel() == 0:
        return False
    if last in ("bias", "causal_mask", "mask"):
        rows, columns = tensor.shape[-2:] if tensor.dim() == 4 else (1, 0)
        square = tensor.shape[:2] == (1, 1) and rows == columns
        return square and torch.equal(tensor != 0, torch.ones_like(tensor, dtype=torch.bool).tril())
    if last == "masked_bias":
        return tensor.numel() == 1 and float(tensor) <= -1e4
    if last == "position_ids":
        places = torch.arange(tensor.shape[-1], device=tensor.device) if tensor.dim() else None
        return places is not None and torch.equal(tensor.long(), places.expand(tensor.shape))
    if last == "inv_freq":
        falls = tensor.dim() == 1 and float(tensor[0]) == 1 and bool((tensor.diff() < 0).all())
        return falls and bool((tensor > 0).all())
    return False


def advice(names: Sequence[str], missing: Sequence[str]) -> str | None:
    """Say what to do with a file whose names no renaming brings to the network's, if it is known.

    Args:
        names: of the file's tensors.
        missing: names that the network wants and the file has not.

    Example:
        >>> advice(["mlp.experts.0.w1"], ["mlp.experts.gate_up_proj"])[:36]
        'the experts of a layer are stored on'
    """
    if names and all(map(ADAPTER.search, names)):
        return f"the names are those of {MERGE_ADAPTER}"
    for those, others, stored, wanted in (
        (names, missing, "one by one", "as one tensor"),
        (missing, names, "as one tensor", "one by one"),
    ):
        if any(map(ONE_EXPERT.search, those)) and any(map(ALL_EXPERTS.search, others)):
            return (
                f"the experts of a layer are stored {stored} and the network has them {wanted}, as "
                "releases of transformers before 5 and since then do: load the folder by "
                "from_pretrained of the network's own release, and give its state_dict()"
            )
    return None
