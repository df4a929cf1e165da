"""Foreign weights and configurations into ours, and back."""
