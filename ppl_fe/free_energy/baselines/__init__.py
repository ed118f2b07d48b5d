"""What else could have told which checkpoint to take."""
