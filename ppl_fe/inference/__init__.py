"""From a Pyro program to draws; knows nothing of networks or of particular models.

sampling.py   sample(): from a program and its arguments to draws
samplers.py   the family of stochastic-gradient samplers
adjusted.py   the sampler for exact gradients, without a step-size bias
kernels.py    a sampler with its settings
pyro_kernel.py  the protocol of Pyro's own MCMC
run_plan.py   what a kernel is asked to run: a target, and a plan of how
targets.py    what a run must reach to be an answer
schedules.py  step sizes that change
program/      what the posterior is
dynamics/     one sampler's equation a file: pure tensor steps
step/         what a step is: gradient, metric and dynamics as one function, compiled
warmup/       what is learnt before the draws, then frozen
record/       what is kept of the draws, in memory and on disk
run/          the order of events: warm-up, draws, interruption, resuming
"""

from ppl_fe.inference import schedules
from ppl_fe.inference.adjusted import MALT
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.samplers import BAOAB, PSGLD, SGHMC, SGLD, SGNHT
from ppl_fe.inference.sampling import sample

__all__ = ["BAOAB", "MALT", "PSGLD", "SGHMC", "SGLD", "SGNHT", "Kernel", "sample", "schedules"]
