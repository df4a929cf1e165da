"""Sources: folders, tensorflow-datasets, shards, mixtures, latents."""
