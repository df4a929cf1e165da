"""FLUX.1: text and patches of latents as one sequence of tokens."""
