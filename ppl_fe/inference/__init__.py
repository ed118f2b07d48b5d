"""From a Pyro program to draws; knows nothing of networks or of particular models.

What the posterior is
    program.py        one run of a program at unconstrained values
    layout.py         its sites side by side in one vector
    density.py        the program as a log-density, one chain or all
    fallback.py       programs that cannot be batched over chains
    full_data.py      the density on all the data, through plates that subsample

What a step is
    gradients.py      estimators of the gradient
    dynamics/         one file a sampler: pure tensor steps
    metric.py         whitened coordinates, for a dense metric
    temperature.py    the configurational temperature
    step.py           all of these as one function of tensors
    compile.py        that function as a graph, compiled or not
    streams.py        noise, index sets, minibatches
    chains.py         the state of all chains and the step that moves them

What warm-up finds
    initial.py        where chains start
    curvature.py      the stiffest direction and the gradient noise along it
    adaptation.py     step size and friction from them
    phases.py         metric, anchor of control variates, centre of the temperature

What is kept
    moments.py        running moments of every coordinate; split_statistics.py R-hat and ESS
    draws.py          draws as a DataTree; store.py the same on disk, and how to resume

Front doors
    kernels.py        a sampler with its settings; samplers.py the family; pyro_kernel.py for Pyro
    loop.py, run.py   warm-up, draws, interruption; failures.py chains that diverge
    parallel.py       one process a chain
    sampling.py       sample()
"""
