"""Stage 2: training the chosen parameters alone."""
