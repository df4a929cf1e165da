"""Published models in and out: folders, single files, LoRA, the hub."""
