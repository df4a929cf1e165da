"""The Hugging Face hub: models fetched from it and pushed to it."""
