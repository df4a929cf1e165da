"""Convolutions and attention by algorithms that are faster on a CPU.

The same functions as XLA's own to float32's rounding, chosen by shape, format
and platform in `choice`; TPUs and GPUs keep XLA's.

Every function with a derivative of its own is under `jax.jit`, so that a
network traces and lowers equal shapes once; its `__wrapped__` has the
derivative.
"""
