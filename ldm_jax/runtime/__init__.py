"""The machine: whatever would be the same for any other model."""
