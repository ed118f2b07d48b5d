"""Rules to choose parameters by: each an object with its own settings, one rule a file.

Each takes a task and gives scores (`ppl_fe.finetuning.scoring`). A new rule is one file here, or
any object of a `Rule` of your own that is given to `select_parameters`.

    bayes_tune.py        BayesTune: posterior mean scales, drawn from the posterior as it is stated
    released_recipe.py   ReleasedCode: what the code released with BayesTune does, another target
    gradient.py          Gradient: the largest gradients of all the data
    gradient_squared.py  GradientSquared: squared gradients of one pass through the data
    gradient_to_weight.py  GradientToWeight: the largest gradients for their weights, by tensor
    per_neuron.py        PerNeuron: the largest gradients of every neuron
    movement.py          Movement: how far plain fine-tuning moves each weight
    magnitude.py         Magnitude: the largest pretrained weights
    low_rank.py          LowRank: the largest pretrained weights after a reduction of rank
    bias_only.py         BiasOnly: every bias
    at_random.py         Random: chance, which any rule has to beat
    shorthands.py        names in place of objects, and the arguments that settings used to be
"""

from __future__ import annotations

from ppl_fe.finetuning.rules.at_random import Random
from ppl_fe.finetuning.rules.bayes_tune import BayesTune
from ppl_fe.finetuning.rules.bias_only import BiasOnly
from ppl_fe.finetuning.rules.gradient import Gradient
from ppl_fe.finetuning.rules.gradient_squared import GradientSquared
from ppl_fe.finetuning.rules.gradient_to_weight import GradientToWeight
from ppl_fe.finetuning.rules.low_rank import LowRank
from ppl_fe.finetuning.rules.magnitude import Magnitude
from ppl_fe.finetuning.rules.movement import Movement
from ppl_fe.finetuning.rules.per_neuron import PerNeuron
from ppl_fe.finetuning.rules.released_recipe import ReleasedCode

__all__ = [
    "BayesTune",
    "BiasOnly",
    "Gradient",
    "GradientSquared",
    "GradientToWeight",
    "LowRank",
    "Magnitude",
    "Movement",
    "PerNeuron",
    "Random",
    "ReleasedCode",
]
