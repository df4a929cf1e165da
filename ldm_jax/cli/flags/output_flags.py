"""Flags for the files that sample writes, as a table; see flag_notation.py."""

OUTPUT = """
--out -o --outdir: DIR
  default outputs
--output: png|latent
  latent writes latents.npy (N, H, W, C) as they leave the sampler
--no_metadata: yes
  leave the settings out of the PNGs
"""
