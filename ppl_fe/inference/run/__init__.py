"""The order of events of a run.

one_run.py        from a kernel and a density to a DataTree
loop.py           warm-up and draws, the progress bar, Ctrl-C between two steps
run_length.py     how long a run is
failed_chains.py  chains that diverge
parallel.py       one process a chain
"""
