"""All chains of stage 1 in turn, begun again with shorter steps where loss or gradient overflow."""

from __future__ import annotations

from math import log

from tqdm.auto import tqdm

from ppl_fe.diverged import DivergedError
from ppl_fe.files.kept_run import KeptRun
from ppl_fe.finetuning.bayestune.scale_chains import ScaleChains
from ppl_fe.finetuning.going_on import between_steps
from ppl_fe.inference.run.interrupts import Interrupts

SHORTER, MOST_RESTARTS = 4.0, 3


def run_chains(chains: ScaleChains, kept: KeptRun | None = None, *, progress_bar: bool) -> int:
    """Run every chain from a start of its own, or go on where they stand.

    An automatic step is chosen by the stiffness at the anchor and half through the warm-up. A
    network can be far stiffer on the way, as where a fresh head has not learnt to use it, and then
    loss or gradient overflow. Nothing of such a try is kept: all chains begin again with a quarter
    of its step, three times at most.

    Args:
        chains: all of them.
        kept: where the run is kept, nowhere by default.
        progress_bar: whether to show one.

    Returns:
        How often they began again.

    Raises:
        DivergedError: names chain, step and layer; `chains.moments` hold the draws before.
        KeyboardInterrupt: Ctrl-C; the message says how much is kept.
    """
    plan, restarts = chains.plan, round(log(chains.shorter, SHORTER))
    total = plan.num_chains * plan.num_steps
    with (
        tqdm(
            total=total,
            initial=chains.num_moved,
            disable=not progress_bar,
            desc="stage 1",
            unit="step",
            leave=False,
        ) as bar,
        Interrupts() as interrupts,
    ):
        while chains.num_moved < total:
            between_steps(kept, interrupts, chains.state, chains.so_far, "stage 1")
            chain, step = divmod(chains.num_moved, plan.num_steps)
            try:
                chains.look_around(chain, step)
                loss = chains.step()
            except DivergedError as error:
                given = plan.step_size != "auto"
                if restarts == MOST_RESTARTS or given or chains.num_moved == 0:
                    raise DivergedError(
                        f"chain {chain}, step {step + 1} of {plan.num_steps}, at step size "
                        f"{chains.tuning.step_size:.3g}: {error}"
                    ) from error
                restarts += 1
                chains.restart(SHORTER**restarts)
                bar.reset()
                continue
            sampled = step + 1 - plan.warmup_steps
            if sampled > 0 and sampled % plan.thinning == 0:
                chains.keep()
            bar.update()
            if not bar.disable:
                bar.set_postfix({"chain": chain, "loss": f"{loss:.4f}"}, refresh=False)
    if kept is not None:
        kept.commit(chains.state, chains.so_far)
    return restarts
