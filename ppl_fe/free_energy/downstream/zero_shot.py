"""The checkpoint as it is, before any fine-tuning: its loss and its score on the labels."""

from __future__ import annotations

from torch import Tensor

from ppl_fe.free_energy.downstream.labels import is_classes
from ppl_fe.free_energy.downstream.prediction_scores import Measured, score
from ppl_fe.inference.program.trace import run_program
from ppl_fe.models.likelihoods import Likelihood, observe


def losses(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute each datum's negative log-likelihood, (N,) nats.

    Args:
        likelihood: (outputs, targets) -> observed site.
        outputs: (N, ...) of the network.
        targets: (N, ...).

    Example:
        >>> import torch
        >>> from ppl_fe.models import categorical
        >>> losses(categorical, torch.zeros(2, 4), torch.tensor([1, 3])).exp()
        tensor([4., 4.])
    """
    run = run_program(lambda: observe(likelihood, outputs, targets), {}, {})
    terms = [site.log_prob for site in run.pointwise.values()]
    total: Tensor = -sum(terms[1:], terms[0])
    return total


def zero_shot_score(outputs: Tensor, targets: Tensor) -> Measured:
    """Score outputs (N, K) logits by accuracy, or numbers by their rank correlation.

    Example:
        >>> import torch
        >>> zero_shot_score(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])).value
        0.5
    """
    return score(outputs.argmax(1) if is_classes(targets) else outputs, targets)
