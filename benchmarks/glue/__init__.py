"""Parts of the benchmarks `glue.py` and `vision.py`: tasks, network, rules, runs and results."""
