"""Single-file checkpoints: family and configuration from tensors."""
