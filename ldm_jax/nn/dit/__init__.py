"""Diffusion transformers: patches of latents as tokens."""
