"""Why the posterior of the scales can be drawn at 10^7 weights."""
