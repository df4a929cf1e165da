"""Images and words: sources, transforms and batches as a pure function of the step."""
