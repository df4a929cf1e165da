"""Meshes, checkpoints, logging and optimizers: the same for any model."""
