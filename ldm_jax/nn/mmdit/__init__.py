"""Multimodal diffusion transformers: texts and patches attend to each other."""
