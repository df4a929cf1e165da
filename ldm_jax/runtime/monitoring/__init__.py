"""Metrics on disk, step timing, operation counts and the watchdog."""
