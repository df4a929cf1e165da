"""Shapes of networks' parameters, and random arrays of those shapes."""

import math

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


def random_like(shapes, seed=0):
  """Random arrays of a tree of shapes, none of them zero; nothing is compiled.

  Kernels have the variance 1 / fan-in, so that activations keep their size;
  vectors the deviation 0.1, scales of norms about 1.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    fan_in = math.prod(leaf.shape[:-1])
    size = 0.1 if len(leaf.shape) < 2 else fan_in**-0.5
    is_scale = getattr(path[-1], "key", None) == "scale"
    noise = size * rng.standard_normal(leaf.shape)
    return jnp.asarray(is_scale + noise, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def random_variables(module, *inputs, seed=0):
  """A module's variables for these inputs, without compiling its `init`."""
  init = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  return random_like(init, seed)


def state_like(shapes, seed=0):
  """A state at step 0: random parameters and a fresh optimizer."""
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  params = random_like(shapes.params, seed)
  drawn = zeros.replace(params=params)
  if shapes.ema is not None:
    is_whole = jax.tree.structure(shapes.ema) == jax.tree.structure(params)
    average = params if is_whole else params["autoencoder"]
    # A state is donated, so no array may be in it twice.
    drawn = drawn.replace(ema=jax.tree.map(jnp.copy, average))
  if getattr(shapes, "critic", None) is not None:
    drawn = drawn.replace(critic=random_like(shapes.critic, seed + 1))
  return drawn


def random_state(task, batch, frozen, seed=0):
  """A task's state as `state_like`, without compiling its `init`."""
  key = jax.random.key(0)
  return state_like(jax.eval_shape(task.init, key, batch, frozen), seed)
