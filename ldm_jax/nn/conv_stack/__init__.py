"""The convolutional autoencoders of Rombach et al. 2022, whole and in tiles."""
