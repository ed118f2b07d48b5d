"""The criteria by name: which way is better, what each needs, and the columns of the cheap ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppl_fe.arguments import did_you_mean
from ppl_fe.data.sources import TensorData
from ppl_fe.free_energy.baselines.features import last_linear, layer_inputs
from ppl_fe.free_energy.downstream.jackknife import jackknife_error
from ppl_fe.free_energy.downstream.labels import is_classes
from ppl_fe.free_energy.downstream.logme import logme
from ppl_fe.free_energy.downstream.neighbours import neighbour_predictions
from ppl_fe.free_energy.downstream.pactran import pactran
from ppl_fe.free_energy.downstream.prediction_scores import Measured, score
from ppl_fe.free_energy.downstream.ridge_probe import ridge_predictions
from ppl_fe.free_energy.downstream.zero_shot import losses, zero_shot_score
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.flat import FlatNetwork

SAMPLED = ("free_energy", "expected_loss")
LINEARIZED = ("linearized_free_energy", "linearized_score")
ZERO_SHOT = ("zero_shot_loss", "zero_shot_score")
ON_FEATURES = ("logme", "knn_score", "ridge_score", "pactran")
FINETUNED = "finetune_loss"
CRITERIA = (*SAMPLED, *LINEARIZED, *ZERO_SHOT, *ON_FEATURES, FINETUNED)
CONSENSUS = "consensus"
# Whose places make up the consensus, by whether the head is fresh.
VOTERS = {
    False: ("free_energy", "linearized_score", *ZERO_SHOT),
    True: ("free_energy", "linearized_free_energy", "ridge_score", "pactran"),
}
HIGHER_IS_BETTER = frozenset(
    {"linearized_score", "zero_shot_score", "logme", "knn_score", "ridge_score"}
)


def chosen_criteria(
    criteria: Sequence[str] | None, by: str, head: str | None, targets: Tensor
) -> tuple[str, ...]:
    """Give the criteria to compute: those asked for, or all that mean something here.

    Zero-shot numbers need a head that was trained, PACTran classes.

    Raises:
        TypeError: a single name.
        ValueError: an unknown name; one that means nothing here; `by` not among them, or the
            consensus and none of its voters among them.

    Example:
        >>> chosen_criteria(None, "logme", "classifier", torch.tensor([0.5]))[:3]
        ('free_energy', 'expected_loss', 'linearized_free_energy')
    """
    without = dict.fromkeys(ZERO_SHOT, "needs a trained head, and head= names a fresh one")
    without = without if head is not None else {}
    if not is_classes(targets):
        without["pactran"] = "needs integer classes"
    if criteria is None:
        criteria = [name for name in CRITERIA if name not in without]
    if isinstance(criteria, str):
        raise TypeError(f"criteria must be several names; pass [{criteria!r}]")
    for name in criteria:
        if name not in CRITERIA:
            near = did_you_mean(name, CRITERIA) or f"there are {', '.join(CRITERIA)}"
            raise ValueError(f"criteria: there is no {name!r}; {near}")
        if name in without:
            raise ValueError(f"criteria: {name!r} {without[name]}; leave it out")
    voters = [name for name in VOTERS[head is not None] if name in criteria]
    if by == CONSENSUS and not voters:
        raise ValueError(
            f"by={by!r} goes by {', '.join(VOTERS[head is not None])}, none of which is among the "
            f"criteria computed; give one of these as by: {', '.join(criteria)}"
        )
    if by != CONSENSUS and by not in criteria:
        known = [*criteria, CONSENSUS] if voters else criteria
        near = did_you_mean(by, known) or f"there are {', '.join(known)}"
        raise ValueError(f"by={by!r} is not among the criteria computed; {near}")
    return tuple(name for name in CRITERIA if name in criteria)


def feature_layer(network: FlatNetwork, features: str | None, head: str | None) -> str:
    """Name the module whose input counts as the features: the head itself where it is a module.

    Raises:
        ValueError: no linear layer, where nothing is named.
    """
    if features is not None:
        return features
    if head is not None and head in dict(network.module.named_modules()):
        return head
    return last_linear(network)


def label_columns(
    network: FlatNetwork,
    source: TensorData,
    likelihood: Likelihood,
    layer: str,
    wanted: Sequence[str],
) -> dict[str, float]:
    """Compute the criteria that one pass over the labelled data gives, each with an error.

    Args:
        network: the checkpoint.
        source: the labelled data.
        likelihood: of the zero-shot loss.
        layer: the module whose inputs are the features.
        wanted: names among `ZERO_SHOT` and `ON_FEATURES`.

    Returns:
        Name -> value, and `name_error` -> standard error over the labels.

    Raises:
        ValueError: as `layer_inputs`; features that are not finite.
    """
    targets = source.targets
    with torch.no_grad():
        outputs = network(network.anchor, source.inputs)
        entered = layer_inputs(network, network.anchor, source.inputs, layer)
    if not entered.isfinite().all():
        raise ValueError(f"the features, the inputs of {layer!r}, are not finite")

    def whole(criterion: Callable[[Tensor, Tensor], float]) -> Measured:
        error = jackknife_error(lambda rows: criterion(entered[rows], targets[rows]), len(targets))
        return Measured(criterion(entered, targets), error)

    how: dict[str, Callable[[], Measured]] = {
        "zero_shot_loss": lambda: Measured.mean(losses(likelihood, outputs, targets)),
        "zero_shot_score": lambda: zero_shot_score(outputs, targets),
        "logme": lambda: whole(logme),
        "knn_score": lambda: score(neighbour_predictions(entered, targets), targets),
        "ridge_score": lambda: score(ridge_predictions(entered, targets), targets),
        "pactran": lambda: whole(pactran),
    }
    found: dict[str, float] = {}
    for name in wanted:
        if name in how:
            found[name], found[f"{name}_error"] = how[name]()
    return found
