"""Select the weights of largest posterior mean scale: stage 1 of BayesTune, drawn as it is stated.

    λ_i ~ Gamma(α, rate β),   w_i ~ Laplace(anchor_i, λ_i),   y ~ likelihood(f(w, x))^{N̂/n}

(Kim & Hospedales 2023, NeurIPS). Under this prior the Pyro program `ppl_fe.models.bayestune` is not
run: gradients do not find their way through it. `ppl_fe.finetuning.bayestune` draws from the same
posterior exactly, at any size. Any other prior is run as a Pyro program by the engine
(`ppl_fe.finetuning.custom_prior`), in networks of up to some thousand weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from ppl_fe.arguments import named_arguments, require_integer, require_positive
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.bayestune.control_variates import FITTED_PASS
from ppl_fe.finetuning.bayestune.data_count import GradientKind, count_data
from ppl_fe.finetuning.bayestune.pulls import rows_of_a_pass
from ppl_fe.finetuning.bayestune.restarts import run_chains
from ppl_fe.finetuning.bayestune.scale_chains import ScaleChains
from ppl_fe.finetuning.custom_prior.custom_prior import check_prior, sample_scales
from ppl_fe.finetuning.sampling_plan import SamplingPlan
from ppl_fe.finetuning.scoring import DEFAULT_BATCH, Rule, Scores, Task
from ppl_fe.inference.run_plan import RunLength
from ppl_fe.models.bayestune import Prior
from ppl_fe.models.priors import DEFAULT_PRIOR, LaplaceGamma

USUAL = RunLength(num_samples=100, warmup_steps=500, thinning=10)
# Minibatch noise bears on every site of another prior: at 32 of 300 rows the step was 10⁴ times
# smaller than with all of them, and R-hat 700. With all the data and at these lengths it is 1.03
# there under a logistic prior and 1.08 under the horseshoe, at most.
OTHER_PRIOR = RunLength(num_samples=100, warmup_steps=2000, thinning=50)

MANY_STIFF = 0.01  # share of the weights from which a note names them
AGREED = 0.9  # from this share of a selection on that two chains have in common, no note


@named_arguments
@dataclass(frozen=True)
class BayesTune(Rule):
    """Score a parameter by the posterior mean of its Laplace scale λ.

    A weight's mean scale exceeds that of one which nothing moves by much only where the data pull
    it by N̂|∂L/∂w| of several β. At N̂ = n few or no weights of a large network are pulled so
    hard, and the rest would rank by the chains' luck. So by default N̂ is raised until as many are
    as may be selected.

    Args:
        scales: "drawn" (the default) draws λ at every kept draw. "expected" runs the same chain
            with E[λ | Δ] in its place: equal means with smaller errors; the rule is then called
            "collapsed".
        prior: `fe.models.LaplaceGamma()` by default, or with other `alpha` and `beta`. Or a
            function of the anchor (D,) that samples and returns the site `w` (event dimension D):
            it is sampled by BAOAB, in networks of up to some thousand weights, and the score is
            the mean of its site `scale` if that is one a weight, and of |w − anchor| otherwise.
            `batch_size` is then all the data by default.
        groups: one λ for each tensor ("layer") or each row of a matrix ("row", biases whole)
            instead of one a parameter (None, the default), so that whole groups rank alike; a
            threshold selects none in part, a sparsity the last one. It takes 0.4 µs a weight and
            step longer.
        data_size: N̂, what the data count for. "auto" (the default) is the N̂ at which as many
            weights as may be selected are pulled by five β, measured in one pass over the data
            at the pretrained weights, n at least; the selection's `notes` say how often the data
            count, and `settings["data_size"]` holds N̂. The scales are then a ranking. With
            N̂ = n, `data_size=len(x)`, they are the posterior's of Bayes' rule. Under a prior of
            your own "auto" is n.
        gradient: "minibatch" estimates gradients by B rows; "control_variate" takes from it the
            same rows' gradient at a reference point and adds that of all the data there, which
            takes twice as long and 4 vectors (D,) more, and passes over the data: one, and two
            for each chain. Where the pull of five β would take a weight less far in the warm-up
            than noise does, the chains start at the network fine-tuned for as many steps as one of
            them takes, passes are half as long, and `notes` say so. "auto" (the default) is
            "control_variate" where N̂ is automatic and above n, and "minibatch" at an N̂ of your
            own. The variance of the minibatches' noise grows with N̂², and where N̂ > n it would
            rank the weights. All the data in a step have none.
        num_chains: C, run one after another; 2 by default. One chain needs least memory and has
            no R-hat.
        num_samples: S, kept draws of a chain; 100 by default.
        warmup_steps: steps of a chain before its first kept draw; 500 by default, and 2,000 under
            a prior of your own.
        thinning: steps that a kept draw costs; 10 by default, and 50 under a prior of your own.
            The defaults come to 1,500 steps a chain, of 20,000 in the paper.
        step_size: ε in the project's convention; "auto" (the default) takes it from curvature and
            gradient noise at the anchor and half through the first warm-up.
        count_top: also give the probability of each parameter to be among the round(p·D) largest;
            False by default.
        diagnose: keep R-hat and MCSE, which costs four vectors (D,); by default with several
            chains.

    Raises:
        TypeError: a prior that is no function of the anchor.
        ValueError: a setting out of range, or settings that do not go together.

    Example:
        >>> import torch
        >>> import ppl_fe as fe
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(200, 20)
        >>> network = fe.FlatNetwork(torch.nn.Linear(20, 1, bias=False))
        >>> y = network(network.anchor, x)[:, 0] + 2 * x[:, 7] + torch.randn(200)
        >>> rule = BayesTune(num_chains=1, warmup_steps=100, num_samples=20)
        >>> selection = fe.select_parameters(
        ...     network, (x, y), likelihood="normal", rule=rule, sparsity=0.05, progress_bar=False)
        >>> selection.mask.nonzero().item()
        7
    """

    scales: Literal["drawn", "expected"] = "drawn"
    prior: Prior = DEFAULT_PRIOR
    groups: Literal["layer", "row"] | None = None
    data_size: float | Literal["auto"] = "auto"
    gradient: GradientKind = "auto"
    num_chains: int = 2
    num_samples: int = USUAL.num_samples
    warmup_steps: int | None = None
    thinning: int | None = None
    step_size: float | Literal["auto"] = "auto"
    count_top: bool = False
    diagnose: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prior", check_prior(self.prior))
        if self.scales not in ("drawn", "expected"):
            raise ValueError(f"scales must be 'drawn' or 'expected', got {self.scales!r}")
        require_integer("num_chains", self.num_chains, 1)
        _ = self.length  # refuses what is no length
        if self.data_size != "auto":
            require_positive("data_size", self.data_size)
        if self.gradient not in get_args(GradientKind):
            raise ValueError(
                f"gradient must be one of {list(get_args(GradientKind))}, got {self.gradient!r}"
            )
        step = self.step_size
        if step != "auto" and not (isinstance(step, float | int) and 0 < step < 1e30):
            raise ValueError(f"step_size must be 'auto' or a positive number, got {step!r}")
        self._check_groups()

    def _check_groups(self) -> None:
        expected, known = self.scales == "expected", isinstance(self.prior, LaplaceGamma)
        if self.groups is not None and (
            self.groups not in ("layer", "row") or expected or self.count_top
        ):
            raise ValueError(
                "groups must be 'layer' or 'row', with scales='drawn' and without count_top, got "
                f"groups={self.groups!r}, scales={self.scales!r}, count_top={self.count_top}"
            )
        varied = self.gradient == "control_variate"
        if not known and (expected or self.count_top or self.groups is not None or varied):
            raise ValueError(
                "scales='expected', groups, count_top and gradient are of the prior LaplaceGamma "
                "alone; leave them out"
            )

    @property
    def name(self) -> str:
        """Name the rule: "bayestune", or "collapsed" with expected scales."""
        return "bayestune" if self.scales == "drawn" else "collapsed"

    @property
    def default_batch_size(self) -> int | None:  # type: ignore[override]
        """Give 32, or None under a prior of your own: all the data."""
        return DEFAULT_BATCH if isinstance(self.prior, LaplaceGamma) else None

    @property
    def can_be_kept(self) -> bool:  # type: ignore[override]
        """Whether a run can be gone on with: under a prior of your own it cannot."""
        return isinstance(self.prior, LaplaceGamma)

    @property
    def length(self) -> RunLength:
        """Give the length of a chain, defaults filled in."""
        usual = USUAL if isinstance(self.prior, LaplaceGamma) else OTHER_PRIOR
        warmup_steps = usual.warmup_steps if self.warmup_steps is None else self.warmup_steps
        thinning = usual.thinning if self.thinning is None else self.thinning
        return RunLength(self.num_samples, warmup_steps, thinning)

    def plan(self, task: Task, data_size: float) -> SamplingPlan:
        """Resolve the settings for a task at N̂ = `data_size`.

        Raises:
            ValueError: `count_top` without a number to count.
        """
        if self.count_top and task.num_selected is None:
            raise ValueError(
                "count_top needs a number as sparsity: the parameters counted are the "
                "round(sparsity * D) largest of each draw"
            )
        return SamplingPlan(
            **vars(self.length),
            scale=self.scales,
            num_chains=self.num_chains,
            step_size=self.step_size,
            data_size=float(data_size),
            batch_size=task.batch_size,
            seed=task.seed,
            errors=self.num_chains > 1 if self.diagnose is None else self.diagnose,
            top=task.num_selected if self.count_top else None,
            groups=self.groups,
        )

    def score(self, task: Task) -> Scores:
        """Run the chains and give the means of what they drew.

        Raises:
            DivergedError: the loss or a gradient is not finite: names chain, step and layer; its
                `scale_mean` is that of the draws before.
        """
        prior, asked = self.prior, self.data_size
        if not isinstance(prior, LaplaceGamma):
            own = task.source.num_data if asked == "auto" else asked
            return sample_scales(task, prior, self.plan(task, own))
        self.plan(task, 1.0)  # refuses what does not go together before anything is measured
        found = count_data(task, asked, self.gradient, prior.beta, self.groups, self.length)
        plan = self.plan(task, found.data_size)
        chains = ScaleChains(
            task.network,
            task.objective,
            task.source,
            prior.alpha,
            prior.beta,
            plan,
            task.head_slices,
            found.reference,
        )
        if task.kept is not None and task.kept.stopped is not None:
            chains.restore(task.kept.stopped)
        try:
            times_shortened = run_chains(chains, task.kept, progress_bar=task.progress_bar)
        except DivergedError as error:
            before = None if chains.moments is None else chains.per_weight(chains.moments.so_far())
            advice = "" if plan.step_size == "auto" else f"; lower step_size={plan.step_size:g}"
            raise DivergedError(f"stage 1, {error}{advice}", scale_mean=before) from error
        assert chains.moments is not None
        mean, sd, r_hat, mcse = (
            None if values is None else chains.per_weight(values)
            for values in chains.moments.summary()
        )
        assert mean is not None
        agreement = _agreement(chains, task)
        return Scores(
            score=mean,
            scale_mean=mean,
            scale_sd=sd,
            r_hat=r_hat,
            mcse=mcse,
            probability_in_top=_shares(chains),
            settings=_settings(chains, prior) | {"agreement": agreement},
            notes=(
                *found.notes,
                *_step_notes(chains, times_shortened),
                *_agreement_notes(agreement, task.num_selected, plan.num_chains),
            ),
            remedy=plan.remedy,
        )


def _settings(chains: ScaleChains, prior: LaplaceGamma) -> dict[str, Any]:
    return {
        **vars(chains.plan),
        "alpha": prior.alpha,
        "beta": prior.beta,
        "step_size": chains.tuning.step_size,
        "num_data": chains.source.num_data,
        "gradient": "minibatch" if chains.reference is None else "control_variate",
    }


def _shares(chains: ScaleChains) -> Tensor | None:
    """Give the share of draws in which each scale was among the largest (D,), if counted."""
    if chains.counts is None or chains.moments is None:
        return None
    return chains.per_weight(chains.counts) / chains.moments.num_draws


def _step_notes(chains: ScaleChains, times_shortened: int) -> list[str]:
    notes = []
    if times_shortened:
        notes.append(
            "loss or gradient overflowed at the step chosen by the stiffness at the anchor; all "
            f"chains ran at {chains.shorter:.0f} times shorter ones, and may want more of them"
        )
    if chains.reference is not None and chains.reference.fitted:
        plan, num_data = chains.plan, chains.source.num_data
        rows = rows_of_a_pass(chains.source, plan.batch_size, round(FITTED_PASS * plan.num_steps))
        fewer = f"; their gradient of all the data is that of {rows:,} rows" * (rows < num_data)
        notes.append(
            f"steps of {chains.tuning.step_size:.2g} are so short that a weight pulled by five "
            "beta would go less far in the warm-up than noise takes it: the chains start at the "
            f"network fine-tuned for {plan.num_steps} steps, and the ranking is somewhere between "
            f"that start's and the posterior's{fewer}"
        )
    if chains.tuning.clamped > MANY_STIFF:
        notes.append(
            f"{100 * chains.tuning.clamped:.3g} % of the weights are stiffer than the step size "
            f"{chains.tuning.step_size:.2g} bears; their scales come out too large: lower step_size"
        )
    return notes


def _agreement(chains: ScaleChains, task: Task) -> float | None:
    """Give the share of the weights selected that two chains alone have in common, if known."""
    watched = None if chains.moments is None else chains.moments.agreement
    if watched is None or task.num_selected is None:
        return None
    return watched.shared(task.num_selected / int(task.ranked.sum()))


def _agreement_notes(
    agreement: float | None, num_selected: int | None, num_chains: int
) -> list[str]:
    """Note how much of a selection another seed would find again, where it is not most of it."""
    if agreement is None or agreement >= AGREED:
        return []
    return [
        f"two chains alone share {100 * agreement:.0f} % of the {num_selected:,} weights that each "
        f"would select; the averages of {num_chains} selected here are steadier, and raising "
        "num_chains makes them more so"
    ]
