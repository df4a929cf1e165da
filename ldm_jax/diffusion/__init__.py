"""Schedules, parameterizations, losses, guidance and samplers."""
