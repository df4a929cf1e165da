"""What stage one trains with: its losses, its state, what it begins from."""
