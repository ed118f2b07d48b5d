"""What the posterior is: a Pyro program as a log-density of one vector.

density.py      the program as a log-density, one chain or all; its sites side by side
trace.py        one run of a program at unconstrained values, and what it observes
site_checks.py  supports and plates that can be sampled, and those that cannot
explain.py      arguments of the wrong kind, named when a trial run fails on them
full_data.py    the density on all the data, through plates that subsample
"""
