"""The learning: one file is one meaning of "a training step"."""
