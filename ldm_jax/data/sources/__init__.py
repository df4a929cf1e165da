"""Data sets: folders, tfds, shards, mixtures, cached latents."""
