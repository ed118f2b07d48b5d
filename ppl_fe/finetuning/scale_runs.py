"""The loop of stage 1: chain after chain, and all anew with shorter steps where one is lost."""

from __future__ import annotations

from tqdm.auto import tqdm

from ppl_fe.finetuning.scale_chains import ScaleChains
from ppl_fe.finetuning.working_copy import NotFiniteGradientError

SHORTER, MOST_TRIES = 4.0, 4


def run_chains(chains: ScaleChains, *, progress_bar: bool) -> int:
    """Run every chain from a start of its own; how often it took shorter steps to get through.

    An automatic step is chosen by the stiffness at the anchor and half through the warm-up. A
    network can be far stiffer on the way, as where a fresh head has not learnt to use it, and then
    loss or gradient overflow. Nothing of such a try is kept: all chains begin anew with a quarter
    of its step, three times at most.

    Raises:
        NotFiniteGradientError: names chain, step and layer; `chains.moments` hold the draws before.
    """
    for tried in range(MOST_TRIES):
        try:
            _run(chains, progress_bar)
        except NotFiniteGradientError:
            last = tried == MOST_TRIES - 1
            if last or chains.plan.step_size != "auto" or chains.num_moved == 0:
                raise
            chains.begin_anew(SHORTER ** (tried + 1))
        else:
            break
    return tried


def _run(chains: ScaleChains, progress_bar: bool) -> None:
    plan = chains.plan
    with tqdm(
        total=plan.num_chains * plan.num_steps,
        disable=not progress_bar,
        desc="stage 1",
        unit="step",
        leave=False,
    ) as bar:
        for chain in range(plan.num_chains):
            step = 0
            try:
                chains.start(chain)
                for step in range(plan.num_steps):
                    if chain == 0 and 0 < step == plan.warmup_steps // 2:
                        chains.tune()
                    loss = chains.step()
                    kept = step + 1 - plan.warmup_steps
                    if kept > 0 and kept % plan.thinning == 0:
                        chains.keep()
                    bar.update()
                    if not bar.disable:
                        bar.set_postfix({"chain": chain, "loss": f"{loss:.4f}"}, refresh=False)
            except NotFiniteGradientError as error:
                raise NotFiniteGradientError(
                    f"chain {chain}, step {step + 1} of {plan.num_steps}, at step size "
                    f"{chains.step_size:.3g}: {error}"
                ) from error
