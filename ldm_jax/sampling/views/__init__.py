"""What a model does, as images: its first stage, and grids of settings."""
