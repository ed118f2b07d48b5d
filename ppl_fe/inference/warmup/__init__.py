"""What is learnt in warm-up, then frozen.

starts.py             where chains start, and the modes that they start about
curvature.py          the stiffest direction and the gradient noise along it
step_size.py          step size and friction from them
learned_in_warmup.py  metric, anchor of control variates, centre of the temperature
advice.py             what keeps chains slow, and the setting that would change it
"""
