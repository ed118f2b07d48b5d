"""What is learnt in warm-up, then held fixed.

starts.py             where chains start, and the modes that they start about
about_a_center.py     starts about a centre that is given, and the metric there
newton.py             where the posterior has its mass, by damped Newton steps
scouts.py             modes that no chain has found
other_modes.py        modes that were found, held against the draws
many_data.py          mode and metric of more data than a Hessian should be taken of
gradient_choice.py    minibatches or control variates, by the noise of each
windows.py            step size and metric of trajectories
curvature.py          stiffest and slowest direction, and the gradient noise along the stiffest
step_size.py          step size and friction from them
learned_in_warmup.py  metric, anchor of control variates, centre of the temperature
advice.py             how long a warm-up should be, and what keeps chains slow
"""
