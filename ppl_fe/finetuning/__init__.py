"""Which parameters to update, by the posterior of the weights' scales; then those alone."""

from __future__ import annotations

from ppl_fe.finetuning.scoring import StageOneError
from ppl_fe.finetuning.select import select_parameters
from ppl_fe.finetuning.selection import Selection, SelectionError, load_selection
from ppl_fe.finetuning.train.training import finetune
from ppl_fe.finetuning.train.tuned import NotFiniteError, Tuned

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
