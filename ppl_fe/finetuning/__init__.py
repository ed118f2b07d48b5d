"""Which parameters to update, by the posterior of the weights' scales; then those alone."""

from __future__ import annotations

from ppl_fe.finetuning.training import finetune
from ppl_fe.finetuning.tuned import NotFiniteError, Tuned

__all__ = ["NotFiniteError", "Tuned", "finetune"]
