"""Latent diffusion in JAX and Flax, both stages, from a laptop to a pod.

`diffusion/` is the mathematics and `nn/` the networks; they have never met.
`latent_diffusion.py` introduces them. `tasks/` says what a training step is,
`data/` feeds it, `runtime/` places it on a machine, `loop.py` repeats it.
`config.py` describes an experiment, `run.py` opens a finished one, and
`commands/` are the doors.
"""

__version__ = "0.1.0"
