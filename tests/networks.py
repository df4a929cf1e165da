"""Shapes of networks' parameters, and random arrays of those shapes."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.nn.conditioners.embedders import ClassEmbedder, Condition
from ldm_jax.weights.naming.convert import shapes


def f32(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def init_shapes(module, *specs):
  variables = jax.eval_shape(module.init, jax.random.key(0), *specs)
  return shapes(variables["params"])


def unet_shapes(unet, channels, context=None, vector=None):
  """Of a U-Net with inputs of these channels, and widths of context, vector."""
  side = unet.size_multiple
  condition = Condition(
    context=context and f32(1, 2, context),
    vector=vector and f32(1, vector),
    guidance=f32(1) if unet.guidance_width else None,
  )
  return init_shapes(unet, f32(1, side, side, channels), f32(1), condition)


def autoencoder_shapes(autoencoder):
  side = autoencoder.stride
  latents = autoencoder.latent_shape(side, side)
  return init_shapes(autoencoder, f32(1, side, side, 3), f32(1, *latents))


def text_shapes(encoder):
  return init_shapes(encoder, jax.ShapeDtypeStruct((1, 2), jnp.int32))


def class_shapes(classes, width):
  label = jax.ShapeDtypeStruct((1,), jnp.int32)
  drop = jax.ShapeDtypeStruct((1,), jnp.bool_)
  return init_shapes(ClassEmbedder(classes, width), label, drop)


def foreign(names):
  """Shapes by foreign name of a table."""
  return {row.foreign_name: row.foreign_shape() for row in names.rows}


def random_tensors(sizes, seed=0):
  """Flat arrays, normal, of the shapes by name."""
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in sizes.items()
  }


def nest(flat):
  """A nested dict of arrays by path."""
  params = {}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return params


def random_params(sizes, seed=0):
  """A nested dict of normal arrays."""
  return nest(random_tensors(sizes, seed))
