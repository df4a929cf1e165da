"""Latent diffusion in JAX and Flax, both stages, from a laptop to a pod.

`diffusion/` is the mathematics and `nn/` the networks; they have never met.
`latent_diffusion.py` introduces them. `tasks/` says what a training step is,
`data/` feeds it, `runtime/` places it on a machine, `training/` repeats it.
`sampling/` makes pictures. `config.py` describes an experiment, `run.py` opens
a finished one, `pretrained/` speaks with Stable Diffusion's files through
`weights/`, and `commands/` are the doors.
"""

import importlib

__version__ = "0.1.0"

# Public names and where they live; none is imported before it is asked for.
_PUBLIC = {
  "from_pretrained": "ldm_jax.pretrained.from_pretrained",
  "from_single_file": "ldm_jax.pretrained.from_pretrained",
  "save_pretrained": "ldm_jax.pretrained.save_pretrained",
  "save_single_file": "ldm_jax.pretrained.save_pretrained",
  "LatentDiffusion": "ldm_jax.latent_diffusion",
  "Autoencoder": "ldm_jax.nn.autoencoder",
  "UNet": "ldm_jax.nn.unet",
  "Recipe": "ldm_jax.diffusion.samplers",
  "Studio": "ldm_jax.sampling",
  "Settings": "ldm_jax.sampling",
  "Order": "ldm_jax.sampling",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f"module 'ldm_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_PUBLIC])
