"""Images and words: sources, transforms, batches as a function of the step."""
