"""The order of events of a run.

one_run.py        from a kernel, a target and a plan to a DataTree
stages.py         chains of some targets go on, those of others end
identity.py       which run a call asks for, and where two differ
loop.py           warm-up and draws, Ctrl-C between two steps
progress.py       the progress bar
forecast.py       the line before the long part
until.py          whether the draws are an answer yet
conclusion.py     the line at the end
failed_chains.py  chains that diverge
parallel.py       one process a chain
"""
