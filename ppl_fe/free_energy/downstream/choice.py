"""Several checkpoints and a few labels of the task: which one to fine-tune."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from torch import nn

from ppl_fe.arguments import named_arguments
from ppl_fe.data.sources import TensorData, as_data
from ppl_fe.free_energy.candidates import Checkpoint, named_checkpoints
from ppl_fe.free_energy.chain_options import ChainOptions, Sampler
from ppl_fe.free_energy.downstream.comparison import Question, compare
from ppl_fe.free_energy.downstream.criteria import CONSENSUS, chosen_criteria
from ppl_fe.free_energy.downstream.labels import refuse_constant
from ppl_fe.free_energy.local_chains import FreshHead
from ppl_fe.free_energy.neighbourhoods import Free
from ppl_fe.inference.run_plan import RunLength
from ppl_fe.inference.samplers import BAOAB
from ppl_fe.inference.step.compile import CompileMode
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.checkpoints import read_checkpoint
from ppl_fe.networks.flat import FlatNetwork, require_network
from ppl_fe.tasks.n_jobs import opened_workers

NO_NEIGHBOURHOOD = 100.0  # γ of fine-tunes where no free energy is asked for and none is given


@named_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class LongSteps(BAOAB):
    """BAOAB at twice its usual step h, which halves the autocorrelation of nL_n.

    What that adds of bias is much the same for all candidates, and below the Monte Carlo error.
    """

    stiffness: float = 1.0


@named_arguments
def choose_checkpoint(
    checkpoints: Mapping[str, Checkpoint] | Iterable[Checkpoint],
    module: nn.Module | Sequence[nn.Module],
    downstream: Any,
    *,
    head: str | None = None,
    head_precision: float | Literal["auto"] = "auto",
    by: str = CONSENSUS,
    criteria: Sequence[str] | None = None,
    features: str | None = None,
    likelihood: str | Likelihood = ChainOptions.likelihood,
    localization: float | Literal["auto"] = "auto",
    kernel: Sampler | Literal["auto"] = ChainOptions.kernel,
    num_rungs: int = 8,
    num_chains: int = 2,
    num_samples: int = 2000,
    warmup_steps: int = 150,
    seed: int = ChainOptions.seed,
    executor: Executor | None = None,
    n_jobs: int | None = None,
    progress_bar: bool = ChainOptions.progress_bar,
    compile: CompileMode = ChainOptions.compile,
) -> pd.DataFrame:
    """Choose the checkpoint to fine-tune, by a few labelled examples of the task itself.

    `rank_checkpoints` asks the pretraining data; this asks the downstream ones, with a module that
    has the downstream head. Beside the downstream free energy −log Z at β = 1 stands what else
    could tell, each with an error bar:

    - ``consensus``: how far down the lists of the free energy and of the predictions on the labels
      a checkpoint stands in the mean, from 0 (all put it first) to 1;
    - ``free_energy`` and ``expected_loss``: −log Z and E[nL_n(w)] at β = 1, in nats (see
      `integrate_free_energy`), with the worst ``r_hat`` and ``ess`` of the rungs;
    - ``linearized_free_energy``, ``linearized_score``: −log Z of the linearised network in closed
      form, without chains, and its predictions, each label left out of its own;
    - ``zero_shot_loss``, ``zero_shot_score``: as the checkpoint is, where its head is trained;
    - ``logme``, ``knn_score``, ``ridge_score``, ``pactran``: on the features. kNN and the ridge
      probe leave each example out of its own prediction;
    - ``finetune_loss``, ``finetune_score``, ``finetune_steps``: short fine-tunes, each fold of the
      labels left out once, the worse half of the candidates stopped after each round.

    A score is the accuracy of classes, or Spearman's rank correlation of numbers.

    Args:
        checkpoints: as in `rank_checkpoints`; a fresh head may be missing from them, or be another
            task's.
        module: the architecture with the downstream head; its own weights do not matter. Of several
            architectures a list: each checkpoint goes to the first that it fits, and is ranked
            among its own, as γ and the features mean something else in each.
        downstream: (inputs, targets) in memory, as in `estimate_free_energy`: the few labels.
        head: the prefix of a fresh head's parameters, as "classifier"; None (default) where the
            checkpoints' own head is to be taken.
        head_precision: of the head's prior N(0, 1/head_precision), in units of 1/weight²; "auto"
            (default) chooses one for all candidates by the same evidence as γ, and is 1 where no
            free energy is asked for.
        by: the criterion of the order and the recommendation: "consensus" (default), or one of
            the others.
        criteria: what to compute, by name; all that mean something here by default.
        features: the module whose input counts as the features; by default the head, or the last
            linear layer.
        likelihood: "categorical" (default), "normal" (of sd 1), "next_token", or a function of
            (outputs, targets) that makes the observed site; with a noise of sd 0.3 its body is
            ``pyro.sample("y", dist.Normal(outputs[:, 0], 0.3), obs=targets)``.
        localization: γ, in units of 1/weight²; "auto" (default) chooses one for all candidates: of
            the largest evidence of up to four of them, or the first narrower one at which −log Z
            tells all of them apart against its own error. `attrs` say what was tried, and why. The
            linearised networks have a γ of their own then, of the largest evidence.
        kernel: the sampler's class; "auto" by default, which is `fe.BAOAB` with stiffness=1.0.
        num_rungs: K, rungs of the ladder above the prior's, 8 by default; a short run of the first
            candidate places them, at equal lengths of the standard deviation of nL_n.
        num_chains: chains a rung, 2 by default.
        num_samples: S, steps a chain after its warm-up, 2000 by default; a quarter of them where
            γ or the head's precision is chosen.
        warmup_steps: 150 by default.
        seed: 0 by default.
        executor: where the ladders of candidates run, a lot as a task, as in `rank_checkpoints`; γ
            is chosen, and fine-tunes are made, in this process. Default none.
        n_jobs: in its place, processes of this machine: −1 for one a core. Default none.
        progress_bar: True by default.
        compile: "auto" by default, as in `fe.sample`.

    Returns:
        One row a checkpoint, best first, the untrusted ones after those whose chains mixed and the
        failed ones last: the columns above, each with `_error`, then note and error; of several
        architectures a column ``architecture`` first. In its ``attrs``, of several architectures by
        architecture: ``recommendation``, a sentence with the expected regret and its estimate;
        ``agreement``, criterion -> criterion -> rank correlation; ``localization`` and
        ``head_precision``, what was tried of them, ``neighbourhoods`` by evidence and
        ``reliability`` of −log Z over all candidates, and ``localization_why``; ``linearized_at``,
        the γ and the precision of the linearised networks; ``passes``, the
        cost of each criterion a candidate, in passes over the labelled data, less what chose the
        neighbourhood and placed rungs; ``read_first``.

    Raises:
        TypeError: a misspelt argument; one checkpoint, not several; criteria that are no list.
        ValueError: labels that are all alike; an unknown criterion; data that no checkpoint and not
            the module itself can be put through. A bad checkpoint raises nothing: its row says what
            is wrong.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> inputs = torch.randn(30, 2)
        >>> labels = (inputs[:, 0] > 0).long()
        >>> module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> rows = {"useful": [3.0, 0.0], "useless": [0.0, 3.0]}
        >>> states = {name: {"0.weight": torch.tensor([row, [0.0, 0.0]]), "0.bias": torch.zeros(2)}
        ...           for name, row in rows.items()}
        >>> table = choose_checkpoint(states, module, (inputs, labels), head="1", by="ridge_score",
        ...                           criteria=["ridge_score", "logme"])
        >>> list(table.index)
        ['useful', 'useless']
        >>> print(table.attrs["recommendation"][:14])
        Take 'useful':
    """
    named = named_checkpoints(checkpoints)
    fresh = FreshHead.named(
        head, FreshHead.precision if head_precision == "auto" else head_precision
    )
    free: list[Free] = ["localization"] if localization == "auto" else []
    free += ["head_precision"] if head_precision == "auto" and head is not None else []
    templates = _architectures(module, head)
    source = as_data(downstream)
    if not isinstance(source, TensorData):
        raise ValueError("downstream: give the labelled examples in memory, as (inputs, targets)")
    refuse_constant(source.targets)
    wanted = chosen_criteria(criteria, by, head, source.targets)
    options = ChainOptions(
        likelihood=likelihood,
        localization=NO_NEIGHBOURHOOD if localization == "auto" else localization,
        inverse_temperature=1.0,
        kernel=LongSteps if kernel == "auto" else kernel,
        batch_size=None,
        num_chains=num_chains,
        length=RunLength(num_samples, warmup_steps),
        seed=seed,
        progress_bar=progress_bar,
        compile=compile,
    )
    groups = _divided(named, templates, head)
    with opened_workers(executor, n_jobs) as workers:
        question = Question(
            source, options, fresh, features, wanted, by, num_rungs, tuple(free), workers
        )
        tables = {kind: compare(own, templates[kind], question) for kind, own in groups.items()}
    return _joined(tables) if len(tables) > 1 else next(iter(tables.values()))


def _architectures(
    module: nn.Module | Sequence[nn.Module], head: str | None
) -> dict[str, FlatNetwork]:
    """Name the architectures, and refuse what is none.

    Raises:
        TypeError: a module that is none.
        ValueError: no module, or one without that head.
    """
    modules = list(module) if isinstance(module, Sequence) else [module]
    if not modules:
        raise ValueError("module is empty: give an architecture")
    found: dict[str, FlatNetwork] = {}
    for one in modules:
        network = FlatNetwork(one)
        require_network(network)
        network.head_names(head)
        name = f"{type(one).__name__} of {network.num_parameters:,} weights"
        found[name if name not in found else f"{name}, number {len(found)}"] = network
    return found


def _divided(
    checkpoints: Mapping[str, Checkpoint], templates: Mapping[str, FlatNetwork], head: str | None
) -> dict[str, dict[str, Checkpoint]]:
    """Give each architecture the checkpoints that fit it; what fits none goes to the first."""
    if len(templates) == 1:
        return {name: dict(checkpoints) for name in templates}
    first, groups = next(iter(templates)), dict[str, dict[str, Checkpoint]]()
    for name, checkpoint in checkpoints.items():
        kind = next((k for k, one in templates.items() if _fits(checkpoint, one, head)), first)
        groups.setdefault(kind, {})[name] = checkpoint
    return {kind: groups[kind] for kind in templates if kind in groups}


def _fits(checkpoint: Checkpoint, template: FlatNetwork, head: str | None) -> bool:
    try:
        template.with_state(read_checkpoint(checkpoint), template.head_names(head))
    except Exception:  # what it was becomes the error of its row
        return False
    return True


def _joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put the tables of several architectures one below the other, each in its own order."""
    parts, attrs = [], dict[str, dict[str, Any]]()
    for kind, table in tables.items():
        for name, value in table.attrs.items():
            attrs.setdefault(str(name), {})[kind] = value
        part = table.copy()
        part.attrs = {}
        part.insert(0, "architecture", kind)
        parts.append(part)
    joined = pd.concat(parts)
    said = " ".join(f"{kind}: {text}" for kind, text in attrs["recommendation"].items())
    joined.attrs.update(attrs)
    joined.attrs["recommendation"] = (
        f"{len(tables)} architectures, each ranked within its own. {said}"
    )
    joined.attrs["read_first"] = next(iter(attrs["read_first"].values()))
    return joined
