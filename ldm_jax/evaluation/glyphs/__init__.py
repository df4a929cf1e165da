"""Metrics of images of the built-in glyphs data set."""
