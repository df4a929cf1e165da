"""LoRA files: names of matrices, merging, export."""
