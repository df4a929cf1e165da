"""Containers and name tables of foreign weights, in numpy alone."""
