"""Which parameters of a pretrained network to update, and training those alone.

    select.py         the question: `select_parameters`, from data to a selection
    scoring.py        what a rule is: a task goes in, a score for every parameter comes out
    rules/            the rules, one a file, each an object with its own settings
    part_of_network.py  what may be chosen, as a network of its own
    threshold.py      where a ranking is cut
    score_notes.py    what to doubt about the scores of chains
    selection.py      the answer: `Selection`, and the file that keeps it
    sampling_plan.py  how the chains behind a selection run
    bayestune/        draws from BayesTune's posterior exactly, at any size; equations (1) to (3)
    custom_prior/     draws from the posterior under any other prior, by the engine
    objective.py      the loss of a minibatch, for both stages
    going_on.py       how a call goes on with a run that was stopped
    flat_weights.py   a module whose parameters are views of one vector
    flat_gradient.py  its gradient, part by part
    train/            stage 2: `finetune`, and what it shares with Hugging Face's Trainer

Stage 1 asks how far the posterior lets each weight w_i move from its pretrained value, the anchor:

    (1)  λ_i ~ Gamma(α, rate β),   w_i ~ Laplace(anchor_i, λ_i),   y ~ likelihood(f(w, x))^{N̂/n}
    (2)  score_i = E[λ_i | data]                                             rules/bayes_tune.py
    (3)  mask_i = score_i among the round(p·D) largest                       threshold.py

(Kim & Hospedales 2023, BayesTune, NeurIPS). The Pyro program of (1) is `ppl_fe.models.bayestune`.
The default path does not run it: at the paper's α gradients do not find their way through (1), and
`bayestune/` draws from the same posterior by steps of its own, which a test holds to the program.
Stage 2 minimises over the selected entries alone, from the anchor:

    (4)  L_n(w) = −(1/n) Σ_i log p(y_i | x_i, w),   w_i = anchor_i where mask_i is False
"""

from __future__ import annotations

from ppl_fe.finetuning.rules import (
    BayesTune,
    BiasOnly,
    Gradient,
    GradientSquared,
    GradientToWeight,
    LowRank,
    Magnitude,
    Movement,
    PerNeuron,
    Random,
    ReleasedCode,
)
from ppl_fe.finetuning.scoring import Rule, Scores, Task
from ppl_fe.finetuning.select import select_parameters
from ppl_fe.finetuning.selection import Selection, SelectionError, load_selection
from ppl_fe.finetuning.train.finetune_result import FinetuneResult
from ppl_fe.finetuning.train.peft_export import save_adapter
from ppl_fe.finetuning.train.training import finetune
from ppl_fe.renamed import old_names

__all__ = [
    "BayesTune",
    "BiasOnly",
    "FinetuneResult",
    "Gradient",
    "GradientSquared",
    "GradientToWeight",
    "LowRank",
    "Magnitude",
    "Movement",
    "PerNeuron",
    "Random",
    "ReleasedCode",
    "Rule",
    "Scores",
    "Selection",
    "SelectionError",
    "Task",
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
