"""Any other prior on the weights, sampled by the engine."""
