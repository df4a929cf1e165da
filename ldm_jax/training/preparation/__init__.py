"""Preparing a data set once: images made small, or latents cached."""
