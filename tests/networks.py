"""Shapes of networks' parameters, and random arrays of those shapes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var

from ldm_jax.nn.conditioners.embedders import ClassEmbedder, Condition
from ldm_jax.runtime.program_cache import Structure
from ldm_jax.weights.naming.convert import shapes


def f32(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def init_shapes(module, *specs):
  """Flat, by path; equal modules are traced once."""
  return dict(_init_shapes(module, Structure.of(specs)))


@functools.cache
def _init_shapes(module, inputs):
  specs = inputs.shapes
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


def _put(values, leaf):
  """A device's array of numpy's numbers, in the format of a leaf."""
  return jax.device_put(np.asarray(values, leaf.dtype))


def zeros_like(shapes):
  """Zeros of a tree of shapes; nothing is compiled."""
  return jax.tree.map(lambda leaf: _put(np.zeros(leaf.shape), leaf), shapes)


def random_like(shapes, seed=0):
  """Random arrays of a tree of shapes, none of them zero; nothing is compiled.

  Kernels have the variance 1 / fan-in, so that activations keep their size;
  vectors the deviation 0.1, scales of norms about 1.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    fan_in = math.prod(leaf.shape[:-1])
    size = 0.1 if len(leaf.shape) < 2 else fan_in**-0.5
    is_scale = bool(path) and getattr(path[-1], "key", None) == "scale"
    noise = size * rng.standard_normal(leaf.shape)
    return _put(is_scale + noise, leaf)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def initial_like(init, *inputs, seed=0):
  """What `init` returns, with numpy's random numbers in place of JAX's.

  Arrays that do not depend on the key, such as zeros of last layers, are those
  of `init`, of which that part alone is compiled.

  Args:
    init: a function of a key and the inputs, to a tree of arrays.
  """
  key = jax.random.key(0)
  closed, shapes = jax.make_jaxpr(init, return_shape=True)(key, *inputs)
  random = {closed.jaxpr.invars[0]}
  for equation in closed.jaxpr.eqns:
    if any(isinstance(v, Var) and v in random for v in equation.invars):
      random.update(equation.outvars)
  outputs = closed.jaxpr.outvars
  leaves, tree = jax.tree.flatten(random_like(shapes, seed))
  is_random = [isinstance(v, Var) and v in random for v in outputs]

  def fixed(*of):
    values = jax.tree.leaves(init(*of))
    return [x for x, at in zip(values, is_random, strict=True) if not at]

  found = iter(jax.jit(fixed)(key, *inputs))
  # An average is a copy of the parameters.
  first = {}
  return tree.unflatten(
    jax.device_put(np.array(first.setdefault(v, leaf))) if at else next(found)
    for v, leaf, at in zip(outputs, leaves, is_random, strict=True)
  )


def random_variables(module, *inputs, seed=0):
  """A module's variables for these inputs, without compiling its `init`."""
  init = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  return random_like(init, seed)


def state_like(shapes, seed=0):
  """A state at step 0: random parameters and a fresh optimizer."""
  params = random_like(shapes.params, seed)
  drawn = zeros_like(shapes).replace(params=params)
  if shapes.ema is not None:
    is_whole = jax.tree.structure(shapes.ema) == jax.tree.structure(params)
    average = params if is_whole else params["autoencoder"]
    # A state is donated, so no array may be in it twice.
    copy = lambda leaf: jax.device_put(np.array(leaf))
    drawn = drawn.replace(ema=jax.tree.map(copy, average))
  if getattr(shapes, "critic", None) is not None:
    drawn = drawn.replace(critic=random_like(shapes.critic, seed + 1))
  return drawn


def random_state(task, batch, frozen, seed=0):
  """A task's state as `state_like`, without compiling its `init`."""
  key = jax.random.key(0)
  return state_like(jax.eval_shape(task.init, key, batch, frozen), seed)
