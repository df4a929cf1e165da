"""The training tasks, the trainer, and what a run needs to start."""
