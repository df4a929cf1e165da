"""Published diffusion transformers, in and out."""
