"""Checkpoints by Orbax: atomic, verified, with one writer per run."""
