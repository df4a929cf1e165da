"""Metrics over arrays of images or features."""
