"""Fields of a config: their types, their limits, and the check of both."""
