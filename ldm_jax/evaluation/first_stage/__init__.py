"""Comparison of first stages: charts, metrics, cost, one sheet."""
