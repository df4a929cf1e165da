"""Tokenizers, prompt weighting, and prompts as token ids."""
