"""The halves of a published first stage have their exact sizes.

Whole networks are counted in test_published_experiments.py. The counts were
taken from the reference implementation (CompVis latent-diffusion) built on
torch's meta device.
"""

import math

import jax
import jax.numpy as jnp

from ldm_jax.nn.autoencoder import Autoencoder


def test_kl_f8_tensors_and_halves():
  shapes = jax.eval_shape(
    Autoencoder().init,
    jax.random.key(0),
    jnp.zeros((1, 64, 64, 3)),
    jnp.zeros((1, 8, 8, 4)),
  )["params"]
  # The reference counts quant_conv and post_quant_conv outside both halves.
  sizes_of = {
    half: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes[half]))
    for half in shapes
  }
  assert sizes_of["encoder"] == 34_163_592 + 8 * 8 + 8
  assert sizes_of["decoder"] == 49_490_179 + 4 * 4 + 4
  assert len(jax.tree.leaves(shapes)) == 248
