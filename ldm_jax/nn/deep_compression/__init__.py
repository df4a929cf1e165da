"""DC-AE: autoencoders of 32 pixels per latent and more (Chen et al. 2024)."""
