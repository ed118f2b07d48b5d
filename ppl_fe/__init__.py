"""Which checkpoint to fine-tune, which parameters to update, has the sampler converged.

A public name is imported when it is first used: `import ppl_fe` and `ppl-fe --help` need not wait
seconds for torch and pyro. MaskedTraining is not in `__all__`, as transformers is optional.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ppl_fe.renamed import old_names
from ppl_fe.version import __version__

if TYPE_CHECKING:
    from ppl_fe import models, plots
    from ppl_fe.data import as_data
    from ppl_fe.diagnostics import (
        Check,
        Diagnosis,
        add_log_likelihood,
        add_posterior_predictive,
        diagnose,
        prior_predictive,
        summary,
    )
    from ppl_fe.diverged import DivergedError
    from ppl_fe.finetuning import (
        BayesTune,
        BiasOnly,
        FinetuneResult,
        Gradient,
        GradientSquared,
        GradientToWeight,
        LowRank,
        Magnitude,
        Movement,
        PerNeuron,
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
    from ppl_fe.finetuning.train.huggingface import MaskedTraining as MaskedTraining
    from ppl_fe.free_energy import (
        FreeEnergyEstimate,
        ThermodynamicEstimate,
        choose_checkpoint,
        estimate_free_energy,
        integrate_free_energy,
        rank_checkpoints,
    )
    from ppl_fe.inference import BAOAB, MALT, PSGLD, SGHMC, SGLD, SGNHT, Kernel, sample, schedules
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

__all__ = [
    "BAOAB",
    "MALT",
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
    "Gradient",
    "GradientSquared",
    "GradientToWeight",
    "Kernel",
    "LowRank",
    "Magnitude",
    "Movement",
    "PerNeuron",
    "Random",
    "ReleasedCode",
    "Rule",
    "Selection",
    "SelectionError",
    "ThermodynamicEstimate",
    "__version__",
    "add_log_likelihood",
    "add_posterior_predictive",
    "apply_delta",
    "as_data",
    "choose_checkpoint",
    "diagnose",
    "estimate_free_energy",
    "finetune",
    "integrate_free_energy",
    "load_checkpoint",
    "load_selection",
    "models",
    "plots",
    "prior_predictive",
    "rank_checkpoints",
    "read_checkpoint",
    "sample",
    "save_adapter",
    "save_delta",
    "schedules",
    "select_parameters",
    "summary",
]

# Where a name is looked for; each of these lists what it exports.
_FOLDERS = ("data", "inference", "networks", "diagnostics", "free_energy", "finetuning")
_ELSEWHERE = {"DivergedError": "diverged", "MaskedTraining": "finetuning.train.huggingface"}


def __dir__() -> list[str]:
    """List what is public, all of it and nothing else."""
    return sorted([*__all__, "MaskedTraining"])


def _find(name: str) -> Any:
    if name not in __dir__():
        raise AttributeError(f"module 'ppl_fe' has no attribute {name!r}")
    if name in ("models", "plots"):
        return import_module(f"ppl_fe.{name}")
    if name in _ELSEWHERE:
        home = import_module(f"ppl_fe.{_ELSEWHERE[name]}")
    else:
        folders = (import_module(f"ppl_fe.{folder}") for folder in _FOLDERS)
        home = next(folder for folder in folders if name in folder.__all__)
    globals()[name] = found = getattr(home, name)  # the next time it is found at once
    return found


if not TYPE_CHECKING:
    __getattr__ = old_names(
        __name__,
        {
            "NotFiniteError": "ppl_fe:DivergedError",
            "StageOneError": "ppl_fe:DivergedError",
            "Tuned": "ppl_fe:FinetuneResult",
        },
        otherwise=_find,
    )
