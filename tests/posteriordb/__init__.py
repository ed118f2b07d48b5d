"""Ten posteriors of posteriordb as Pyro programs, against its reference draws."""
