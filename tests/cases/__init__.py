"""Small problems that several tests share."""
