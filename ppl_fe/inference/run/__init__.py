"""The order of events of a run.

one_run.py        from a kernel, a target and a plan to a DataTree
stages.py         chains of some targets go on, those of others end
identity.py       which run a call asks for, and where two differ
loop.py           draws after a warm-up
interrupts.py     Ctrl-C between two steps
warm_up.py        the warm-up, in rounds, and what is kept of it
progress.py       the progress bar
forecast.py       the line before the long part
memory.py         what a run will have taken of it
until.py          whether the draws are an answer yet
conclusion.py     the line at the end
failed_chains.py  chains that diverge
parallel.py       one process a chain
"""
