"""BayesTune: the posterior of the weights' scales, drawn faithfully."""
