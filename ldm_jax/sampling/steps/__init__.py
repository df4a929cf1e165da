"""What the steps of a sampler compute: inputs, functions, pieces."""
