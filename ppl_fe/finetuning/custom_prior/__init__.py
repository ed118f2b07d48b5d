"""Any other prior on the weights: its Pyro program, run by the engine of `fe.sample`.

custom_prior.py         checks a prior, samples its posterior, and scores the weights
variational_starts.py   chooses coordinates and starts, so that one step size serves all sites
"""
