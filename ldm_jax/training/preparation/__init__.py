"""Preparing a data set once: images downscaled, or latents cached."""
