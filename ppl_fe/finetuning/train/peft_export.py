"""A fine-tuned network as an adapter folder of Hugging Face's peft: LoRA, or sparse (SHiRA).

    LoRA:   W = W̄ + (α/r) B A,    A: (r, n), B: (m, r)
    SHiRA:  W = W̄ + S,            S zero but at r·(m + n) places of the (m, n) matrix

(Hu et al. 2021, arXiv:2106.09685; Bhardwaj et al. 2024, arXiv:2406.13175, in peft from 0.17 on.)
SHiRA knows plain linear weights only, and one r for all layers. Layers with fewer trained entries
are filled up with stored zeros.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ppl_fe.arguments import named_arguments
from ppl_fe.finetuning.train.finetune_result import FinetuneResult
from ppl_fe.finetuning.train.lora import ALPHA_OVER_RANK
from ppl_fe.finetuning.train.trained_entries import mask_entries
from ppl_fe.networks.matching import listed
from ppl_fe.networks.parameter_names import linear_weights

PREFIX = "base_model.model."  # peft's wrapper about the module
TASKS = {  # of peft, and where transformers lists the classes for it
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "SEQ_2_SEQ_LM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "CAUSAL_LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "FEATURE_EXTRACTION": "MODEL_MAPPING_NAMES",
}
HEADS = ("classifier", "score", "qa_outputs")  # how the names of peft's heads of a task end
Adapter = tuple[dict[str, Tensor], dict[str, Any]]  # tensors and configuration


@named_arguments
def save_adapter(tuned: FinetuneResult, folder: str | os.PathLike[str]) -> None:
    """Write what fine-tuning changed as an adapter of peft: LoRA or SHiRA, whichever it is.

    ``peft.PeftModel.from_pretrained(module, folder)`` then gives the fine-tuned network up to
    rounding, as peft adds differences; `save_delta` is exact. So does
    ``peft.AutoPeftModelForSequenceClassification.from_pretrained(folder)``, or that of another
    task, where the base came from transformers' ``from_pretrained``: it is read again from there,
    with the arguments that it was read with (``num_labels=3``). Where the last layer is not part
    of `head`, it is ``peft.AutoPeftModel``. peft does not check the base. The files are
    ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        tuned: the result of `finetune`. That of method "lora" gives a LoRA adapter; any other one
            a SHiRA adapter, its mask within the weights of plain ``nn.Linear`` layers.
        folder: made if it does not exist; files of these names are replaced.

    Raises:
        ValueError: what neither can hold: trained entries in biases, norms or embeddings, a layer
            with so many that r·(m + n) > m·n, no trained entry, or a head whose name peft would
            mistake.

    Example:
        >>> import tempfile
        >>> from ppl_fe.finetuning import finetune
        >>> from ppl_fe.networks import FlatNetwork
        >>> network = FlatNetwork(nn.Sequential(nn.Linear(4, 4, bias=False)))
        >>> mask = torch.arange(16) == 5
        >>> data = (torch.ones(2, 4), torch.zeros(2, 4))
        >>> tuned = finetune(network, data, likelihood="normal", mask=mask, progress_bar=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_adapter(tuned, folder)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    tensors, about = _lora(tuned) if tuned.adapters else _shira(tuned)
    about |= {
        "modules_to_save": _head_modules(tuned.network.module, list(tuned.head)),
        "inference_mode": True,
        **_base(tuned.network.module, tuned.head),
    }
    tensors |= {PREFIX + name: tensor.cpu().clone() for name, tensor in tuned.head.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(about, indent=2), encoding="utf-8")


def _base(module: nn.Module, head: Iterable[str]) -> dict[str, Any]:
    """Name a pretrained base of transformers and its task or class, for peft's `AutoPeftModel...`.

    A task makes peft replace the layers of `HEADS`, which it cannot where they are adapted, and
    warns of where they are not saved: then the class is named instead, as peft does without a task.
    """
    place, kind = getattr(module, "name_or_path", None), type(module)
    if not place:
        return {"base_model_name_or_path": None}
    layers = {name.rpartition(".")[0] for name in head}
    replaced = {name for name, _ in module.named_modules() if name.endswith(HEADS)}
    known = kind.__module__.startswith("transformers.") and replaced <= layers
    task = _task(kind.__name__) if known else None
    mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    return {
        "base_model_name_or_path": place,
        "task_type": task,
        "auto_mapping": None if task else mapping,
    }


def _task(kind: str) -> str | None:
    """Find which of peft's tasks a class of transformers is for, if for one."""
    from transformers.models.auto import modeling_auto

    for task, mapping in TASKS.items():
        if kind in getattr(modeling_auto, mapping).values():
            return task
    return None


def _lora(tuned: FinetuneResult) -> Adapter:
    tensors: dict[str, Tensor] = {}
    for layer, (a, b) in tuned.adapters.items():
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = a.cpu().contiguous()
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = b.cpu().contiguous()
    rank = len(next(iter(tuned.adapters.values()))[0])
    return tensors, {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": ALPHA_OVER_RANK * rank,
        "target_modules": _whole_names(tuned.adapters),
    }


def _shira(tuned: FinetuneResult) -> Adapter:
    network, module = tuned.network, tuned.network.module
    parts = {
        name.removesuffix(".weight"): (name, index)
        for name, index in mask_entries(network, tuned.mask).items()
    }
    plain = linear_weights(module)
    others = [name for name, _ in parts.values() if name not in plain]
    if others:
        raise ValueError(
            f"SHiRA adapts weights of nn.Linear only, but entries are trained in: {listed(others)};"
            " select among those weights, select_parameters(..., parameters='linear'), or use "
            "save_delta"
        )
    if not parts:
        raise ValueError("no entry outside the head was trained: there is no adapter to write")
    anchor, weights = network.unflatten(network.anchor), network.unflatten(tuned.weights)
    rank = 1
    for name, index in parts.values():
        count = anchor[name].numel() if index is None else len(index)
        rank = max(rank, -(-count // sum(anchor[name].shape)))
    tensors: dict[str, Tensor] = {}
    for layer, (name, index) in parts.items():
        shape = anchor[name].shape
        places = rank * sum(shape)
        if places > shape.numel():
            raise ValueError(
                f"SHiRA with r={rank}, which the layer of most trained entries needs, would store "
                f"{places} entries of {name} {tuple(shape)}; use save_delta"
            )
        at = torch.arange(shape.numel()) if index is None else _filled(index.cpu(), shape, places)
        change = (weights[name] - anchor[name]).cpu().reshape(-1)
        tensors[f"{PREFIX}{layer}.shira_weight"] = change[at]
        tensors[f"{PREFIX}{layer}.shira_indices"] = torch.stack([at // shape[1], at % shape[1]]).to(
            torch.int32
        )
    return tensors, {
        "peft_type": "SHIRA",
        "r": rank,
        # peft reads the positions from the file. transformers alone does not: by "random" it would
        # put the values at others, by any other name its first call is an error.
        "mask_type": "chosen",
        "target_modules": _whole_names(parts),
    }


def _whole_names(layers: Iterable[str]) -> str:
    """Name layers as a regular expression, which peft matches whole."""
    return "|".join(re.escape(layer) for layer in layers)


def _filled(index: Tensor, shape: torch.Size, places: int) -> Tensor:
    """Fill the trained positions up to the number of places with the first untrained ones."""
    free = torch.ones(shape.numel(), dtype=torch.bool).index_fill(0, index, False)
    spare = free.nonzero().squeeze(1)[: places - len(index)]
    return torch.cat([index, spare]).sort().values


def _head_modules(module: nn.Module, head: list[str]) -> list[str] | None:
    """List the layers of the head, for peft's `modules_to_save`; refuse ambiguous names."""
    layers = sorted({name.rpartition(".")[0] for name in head})
    # peft finds these modules by how their names end.
    mistaken = [
        name
        for name, _ in module.named_modules()
        for layer in layers
        if not layer or (name.endswith(layer) and name not in layers)
    ]
    if mistaken:
        raise ValueError(
            f"peft would take {listed(mistaken)} for the head {listed(layers)}; use save_delta"
        )
    return layers or None
