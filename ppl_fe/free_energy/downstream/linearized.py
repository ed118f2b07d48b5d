"""The downstream free energy of the linearised network, in closed form, and what it predicts.

A network fine-tuned on a few labels stays near its checkpoint, where its outputs are nearly linear
in its weights. Linearised, they have a Gaussian prior (`tangents`), so that −log Z and the
prediction of each label by the others need no chains (`gaussian_process`). Ranking by linearised
checkpoints is due to Deshpande et al. 2021, A linearized framework and a new benchmark for model
selection for fine-tuning, who correlate the kernel with the labels in place of an evidence.

How far the linearised −log Z is from the sampled one, and which foretells fine-tuning better, is in
docs/pages/few_labels.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from math import inf, isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_fe.data.sources import TensorData
from ppl_fe.free_energy.candidates import in_words
from ppl_fe.free_energy.downstream.gaussian_process import Fitted, GaussianProcess
from ppl_fe.free_energy.downstream.jackknife import jackknife_error
from ppl_fe.free_energy.downstream.labels import is_classes
from ppl_fe.free_energy.downstream.prediction_scores import score
from ppl_fe.free_energy.downstream.tangents import Tangents, tangents_of
from ppl_fe.free_energy.local_chains import FreshHead
from ppl_fe.free_energy.lots import MOST_TO_CHOOSE_BY, spread_evenly
from ppl_fe.free_energy.neighbourhoods import Free, Place, search
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.flat import FlatNetwork


class Linearized(NamedTuple):
    """What all candidates came to.

    columns: of each candidate, or its note. place: γ and the precision of the head's prior, None
        where no candidate could be linearised. passes: over the data, a candidate.
    """

    columns: dict[str, dict[str, Any]]
    place: Place | None
    passes: float = 0.0


def linearize_all(
    networks: Mapping[str, FlatNetwork],
    source: TensorData,
    likelihood: Likelihood,
    head: FreshHead | None,
    start: float,
    free: Sequence[Free],
) -> Linearized:
    """Linearise every candidate, in one neighbourhood for all.

    Args:
        networks: the candidates.
        source: the labelled data.
        likelihood: of their targets.
        head: the fresh head, None where it is trained.
        start: γ, or where the search for it begins.
        free: what is chosen, of the largest mean evidence of up to four candidates, by factors of
            √10.
    """
    tangents: dict[str, Tangents] = {}
    columns: dict[str, dict[str, Any]] = {}
    for name, network in networks.items():
        try:
            tangents[name] = tangents_of(network, source, None if head is None else head.name)
        except Exception as error:
            columns[name] = {"note": f"not linearised: {in_words(error)}"}
    if not tangents:
        return Linearized(columns, None)
    processes = _Processes(source, likelihood)
    place = Place(start, None if head is None else head.precision)
    if free:
        some = [tangents[name] for name in spread_evenly(list(tangents), MOST_TO_CHOOSE_BY)]
        some = [one for one in some if isfinite(processes.free_energy(one, place))]
        if some:
            place = search(cache(partial(processes.mean_free_energy, some)), place, free)
    for name, own in tangents.items():
        try:
            columns[name] = processes.columns(own, place)
        except Exception as error:
            columns[name] = {"note": f"not linearised: {in_words(error)}"}
    # Outputs, then a pass and R backward ones, each the price of two.
    passes = 2.0 + 2.0 * max(own.num_tangents for own in tangents.values())
    return Linearized(columns, place, passes)


class _Processes(NamedTuple):
    """What all candidates share."""

    source: TensorData
    likelihood: Likelihood

    def fit(self, tangents: Tangents, place: Place, rows: Tensor | None = None) -> Fitted:
        """Fit a candidate to all data, or to those of these indices alone."""
        mean, targets = tangents.outputs, self.source.targets
        covariance = tangents.covariance(*place)
        if rows is not None:
            rows = rows.to(mean.device)
            count = mean.shape[1]
            own = (rows[:, None] * count + torch.arange(count, device=rows.device)).flatten()
            mean, targets, covariance = mean[rows], targets[rows], covariance[own][:, own]
        shape = tangents.shape
        return GaussianProcess(mean, covariance, self.likelihood, targets, shape).fit()

    def free_energy(self, tangents: Tangents, place: Place) -> float:
        """Give −log Z, infinite where it has none: the candidate's note says why."""
        try:
            return self.fit(tangents, place).free_energy
        except (ValueError, RuntimeError):
            return inf

    def mean_free_energy(self, some: Sequence[Tangents], place: Place) -> float:
        """Average −log Z over candidates; infinite, so that it is not taken, where one has none."""
        return sum(self.free_energy(one, place) for one in some) / len(some)

    def columns(self, tangents: Tangents, place: Place) -> dict[str, float]:
        """Give both criteria of a candidate with their errors over the labels."""
        fitted, targets = self.fit(tangents, place), self.source.targets
        predicted = fitted.left_out.argmax(1) if is_classes(targets) else fitted.left_out
        measured = score(predicted, targets)
        count = len(targets)

        def of_one(rows: Tensor) -> float:
            return self.fit(tangents, place, rows).free_energy / len(rows)

        return {
            "linearized_free_energy": fitted.free_energy,
            "linearized_free_energy_error": count * jackknife_error(of_one, count),
            "linearized_score": measured.value,
            "linearized_score_error": measured.error,
        }
