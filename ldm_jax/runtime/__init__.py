"""The machine: meshes, checkpoints, optimizers, logs; the same for any other model."""
