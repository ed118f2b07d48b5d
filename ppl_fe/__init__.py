"""Which checkpoint to fine-tune, which parameters to update, has the sampler converged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ppl_fe import models
from ppl_fe.data import as_data
from ppl_fe.diagnostics import Check, Diagnosis, add_log_likelihood, diagnose, summary
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning import (
    BayesTune,
    BiasOnly,
    FinetuneResult,
    GradientSquared,
    Magnitude,
    Movement,
    Random,
    ReleasedCode,
    Rule,
    Selection,
    SelectionError,
    finetune,
    load_selection,
    save_adapter,
    select_parameters,
)
from ppl_fe.free_energy import (
    FreeEnergyEstimate,
    ThermodynamicEstimate,
    estimate_free_energy,
    integrate_free_energy,
    rank_checkpoints,
)
from ppl_fe.inference import BAOAB, PSGLD, SGHMC, SGLD, SGNHT, Kernel, sample, schedules
from ppl_fe.networks import (
    AppliedDelta,
    CheckpointError,
    DeltaError,
    FlatNetwork,
    apply_delta,
    load_checkpoint,
    read_checkpoint,
    save_delta,
)
from ppl_fe.renamed import old_names
from ppl_fe.version import __version__

__all__ = [
    "BAOAB",
    "PSGLD",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "AppliedDelta",
    "BayesTune",
    "BiasOnly",
    "Check",
    "CheckpointError",
    "DeltaError",
    "Diagnosis",
    "DivergedError",
    "FinetuneResult",
    "FlatNetwork",
    "FreeEnergyEstimate",
    "GradientSquared",
    "Kernel",
    "Magnitude",
    "Movement",
    "Random",
    "ReleasedCode",
    "Rule",
    "Selection",
    "SelectionError",
    "ThermodynamicEstimate",
    "__version__",
    "add_log_likelihood",
    "apply_delta",
    "as_data",
    "diagnose",
    "estimate_free_energy",
    "finetune",
    "integrate_free_energy",
    "load_checkpoint",
    "load_selection",
    "models",
    "rank_checkpoints",
    "read_checkpoint",
    "sample",
    "save_adapter",
    "save_delta",
    "schedules",
    "select_parameters",
    "summary",
]

_old_name = old_names(
    "ppl_fe",
    {
        "NotFiniteError": "ppl_fe:DivergedError",
        "StageOneError": "ppl_fe:DivergedError",
        "Tuned": "ppl_fe:FinetuneResult",
    },
)


def __dir__() -> list[str]:
    """List what is public, all of it and nothing else."""
    return sorted([*__all__, "MaskedTraining"])


if TYPE_CHECKING:
    from ppl_fe.finetuning.train.huggingface import MaskedTraining as MaskedTraining
else:

    def __getattr__(name: str) -> Any:
        """Import MaskedTraining when asked for: transformers is optional and slow to import."""
        if name != "MaskedTraining":
            return _old_name(name)
        from ppl_fe.finetuning.train.huggingface import MaskedTraining

        return MaskedTraining
