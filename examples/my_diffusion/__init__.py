"""A user's package: one class or function for every protocol."""
