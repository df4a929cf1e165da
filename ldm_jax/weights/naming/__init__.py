"""Conversion of parameter names and array layouts, by tables."""
