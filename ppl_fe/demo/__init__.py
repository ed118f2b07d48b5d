"""A demonstration on scikit-learn's digits: when to trust the free energy as a criterion.

Small networks are pretrained on the digits 0-4 to one training loss, ranked by free energy and by
every baseline, and fine-tuned on a task that keeps the theory's assumption and on one that breaks
it.
"""
