"""Which parameters to update, by the posterior of the weights' scales; then those alone."""

from __future__ import annotations

from ppl_fe.finetuning.selected import Selection, load_selection
from ppl_fe.finetuning.selection import select_parameters
from ppl_fe.finetuning.selection_format import SelectionError
from ppl_fe.finetuning.stage_one import StageOneError
from ppl_fe.finetuning.training import finetune
from ppl_fe.finetuning.tuned import NotFiniteError, Tuned

__all__ = [
    "NotFiniteError",
    "Selection",
    "SelectionError",
    "StageOneError",
    "Tuned",
    "finetune",
    "load_selection",
    "select_parameters",
]
