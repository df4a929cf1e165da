"""Published MMDiTs, Stable Diffusion 3 and 3.5, in and out."""
