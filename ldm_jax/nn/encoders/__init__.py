"""Text, image and metric encoders: CLIP, transformers, Inception, LPIPS."""
