"""What makes equation (2) of `bayestune` run at 10⁷ weights.

fused_update.py  the step block by block, every vector through memory once
counter_rng.py   standard normals as a function of a counter, made where they are used
stiffness.py     the curvature and gradient noise that set the step size and σ
"""
