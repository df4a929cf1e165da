"""The verdict: distances and judges over arrays."""
