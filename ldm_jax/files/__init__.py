"""Files on disk: atomic writes, locks, and opening what a user names."""
