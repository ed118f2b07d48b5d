"""From a Pyro program to draws; knows nothing of networks or of particular models.

program.py      one run of a program at unconstrained values
density.py      the program as a log-density, one chain or all
full_data.py    the same on all the data, through plates that subsample
gradients.py    estimators of its gradient
dynamics/       one file a sampler: pure tensor steps
streams.py      noise, index sets, minibatches
compile.py      a step as a graph, compiled or not
chains.py       the state of all chains and the step that moves them
adaptation.py   step size and friction, from curvature and gradient noise met in warm-up
kernels.py      the samplers as Pyro's MCMC kernels
run.py          warm-up, draws, thinning; draws.py keeps them
sampling.py     sample(), the front door
"""
