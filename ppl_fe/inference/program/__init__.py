"""What the posterior is: a Pyro program as a log-density of one vector.

density.py         the log-density of one vector, for one chain or all; sites and blocks of it
each_chain.py      one chain's function for all: batched or one after another, and its gradient
program_call.py    the program with its arguments
data_frames.py     a data frame among them, column by column
trial.py           what a program is made of, as one run shows it
trace.py           a run of the program at unconstrained values, and what it observes
simulate.py        a run of it forwards, with observed sites drawn anew
minibatches.py     all the data, minibatch after minibatch
enumeration.py     discrete sites, summed out
equal_forms.py     what does not batch, written another way
factorisations.py  matrices without a factor: NaN, and no error
dimensions.py      names of the axes of sites, by their plates
site_checks.py     supports and plates that can be sampled, and those that are refused
explain.py         takes arrays for tensors, and names what else a failed trial run needs
potential.py       a potential energy as a program
ancestors.py       positions from the program's own prior
full_data.py       the density on all the data, through plates that subsample
"""
