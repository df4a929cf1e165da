"""Automatic scoring of samples of the built-in glyphs."""
