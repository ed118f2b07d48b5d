"""The checks of a diagnosis, by what they look at; causes before what they bring about.

lengths.py        warm-up and run in relaxation times, drift of the loss
temperatures.py   is the law as warm as the one asked for
single_chains.py  a chain unlike the others
mixing.py         R-hat, effective sample size, errors
"""
