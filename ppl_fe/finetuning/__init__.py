"""Which parameters to update, by the posterior of the weights' scales; then those alone."""

from __future__ import annotations

from ppl_fe.finetuning.select import select_parameters
from ppl_fe.finetuning.selection import Selection, SelectionError, load_selection
from ppl_fe.finetuning.train.finetune_result import FinetuneResult
from ppl_fe.finetuning.train.peft_export import save_adapter
from ppl_fe.finetuning.train.training import finetune
from ppl_fe.renamed import old_names

__all__ = [
    "FinetuneResult",
    "Selection",
    "SelectionError",
    "finetune",
    "load_selection",
    "save_adapter",
    "select_parameters",
]

__getattr__ = old_names(
    __name__,
    {
        "NotFiniteError": "ppl_fe:DivergedError",
        "StageOneError": "ppl_fe:DivergedError",
        "Tuned": "ppl_fe:FinetuneResult",
    },
)
