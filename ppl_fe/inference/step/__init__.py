"""What a step is: from the gradient to the next position of all chains.

gradients.py      estimators of the gradient
dense_metric.py   whitened coordinates, for a dense metric
temperature.py    the configurational temperature
step_function.py  all of these as one function of tensors, and the slots of its inputs
compile.py        that function as a graph, compiled or not
builder.py        how a run has it built, and what runs of one program share
graph_passes.py   rewrites of the graph, for speed
random_stream.py  noise, index sets, minibatches
chains.py         the state of all chains and the step that moves them
verlet.py         the step of a trajectory as a function of tensors
trajectories.py   the same as `chains.py` for trajectories that are accepted or rejected
metric_factor.py  their metric, learnt from draws and gradients
batchable.py      programs that cannot be batched over chains
unrolled.py       programs that a Python loop makes long
"""
