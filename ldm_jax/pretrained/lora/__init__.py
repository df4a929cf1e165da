"""LoRA files and their kin: names, kinds of changes, merging, export."""
