"""The config.json files of diffusers and transformers."""
