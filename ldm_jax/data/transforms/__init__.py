"""What is done to an example after it is read."""
