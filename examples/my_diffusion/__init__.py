"""A package of a user's own: one class or function for every protocol."""
