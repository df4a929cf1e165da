"""Modules that turn one array of the batch into a condition."""
