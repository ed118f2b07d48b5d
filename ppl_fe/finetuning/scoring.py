"""What a selection rule is: a task goes in, a score for every parameter comes out.

`select_parameters` makes the `Task`, asks the `Rule` for its `Scores`, and cuts them. A rule of
your own is a class with a name and `score`; give an object of it as `rule=`:

    @dataclass(frozen=True)
    class Farthest(Rule):
        name = "farthest"
        def score(self, task):
            return Scores((task.network.anchor - 1.0).abs())
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.files.kept_run import KeptRun
from ppl_fe.finetuning.objective import Objective
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.flat import FlatNetwork

DEFAULT_BATCH = 32


@dataclass(frozen=True)
class Task:
    """What a rule is to score the parameters of a network for.

    Attributes:
        network: the pretrained network of D parameters; rules do not change it.
        source: the checked data.
        objective: the mean negative log-likelihood of a minibatch.
        likelihood: as the caller gave it.
        head: the prefix that names the fresh head, several of them, or None.
        head_names: the tensors of that head.
        ranked: (D,) bool, the entries outside the head. Scores elsewhere are ignored.
        num_selected: how many entries will be selected; None if a threshold or the knee decides.
        batch_size: B, rows in a minibatch, at most N.
        seed: of all randomness.
        progress_bar: whether to show one.
        kept: the file that keeps the run, of rules that can be gone on with; None without one.
    """

    network: FlatNetwork
    source: TensorData | LoaderData
    objective: Objective
    likelihood: str | Likelihood
    head: str | Sequence[str] | None
    head_names: tuple[str, ...]
    ranked: Tensor
    num_selected: int | None
    batch_size: int
    seed: int
    progress_bar: bool
    kept: KeptRun | None = None

    @property
    def head_slices(self) -> list[slice]:
        """Give the head's places in the vector."""
        return [self.network.slices[name] for name in self.head_names]


class Scores(NamedTuple):
    """What a rule found: vectors (D,) as in `Selection`, of which only the first is required.

    score: what parameters are ranked by, larger first.
    scale_mean, scale_sd, r_hat, mcse, probability_in_top: of rules that sample, where measured.
    settings: what to keep with the selection.
    notes: what to know before believing the scores.
    what: the quantities whose posterior means the scores are, in words; `r_hat` is theirs.
    remedy: how chains that disagree may be made to agree, in words.
    """

    score: Tensor
    scale_mean: Tensor | None = None
    scale_sd: Tensor | None = None
    r_hat: Tensor | None = None
    mcse: Tensor | None = None
    probability_in_top: Tensor | None = None
    settings: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()
    what: str = "the scales"
    remedy: str = "raise num_samples"

    def within(self, ranked: Tensor) -> Scores:
        """Put NaN where `ranked` (D,) is False: in the head.

        Example:
            >>> import torch
            >>> Scores(torch.tensor([1.0, 2.0])).within(torch.tensor([True, False])).score
            tensor([1., nan])
        """
        if ranked.all():
            return self
        outside = ~ranked.to(self.score.device)
        vectors: dict[str, Any] = {
            name: value.masked_fill(outside, float("nan"))
            for name, value in self._asdict().items()
            if isinstance(value, Tensor)
        }
        return self._replace(**vectors)


class Rule(ABC):
    """A way to score parameters, with its own settings: a frozen dataclass in most cases.

    Attributes:
        default_batch_size: B where the caller does not give one; None takes all the data.
        takes_sparsity: False if the rule selects the entries of score 1, whatever share is asked
            for.
        can_be_kept: True if it goes on from where `task.kept` stands, and commits to it.

    Example:
        >>> class Smallest(Rule):
        ...     name = "smallest"
        ...     def score(self, task: Task) -> Scores:
        ...         return Scores(-task.network.anchor.abs())
        >>> Smallest().name
        'smallest'
    """

    default_batch_size: int | None = DEFAULT_BATCH
    takes_sparsity: bool = True
    can_be_kept: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Name the rule, for a `Selection`."""

    @abstractmethod
    def score(self, task: Task) -> Scores:
        """Score every parameter of the task's network.

        Raises:
            DivergedError: the loss or a gradient is not finite.
        """
