"""Rules to choose parameters by, and to be compared with."""
