"""Metrics of images and runs, and reports."""
