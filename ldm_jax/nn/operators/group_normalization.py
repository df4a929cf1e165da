"""Group norm of large images, and silu after it, with few passes over them.

JAX's own derivative keeps the centred image and silu's input besides the image,
and reads all of them several times. Here the image alone is kept.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Saved = tuple[Array, Array, Array, Array, Array]


@functools.partial(jax.jit, static_argnums=(3, 4))
def normalize_groups_by_xla(
  x: Float[Array, "b l c"],
  scale: Float[Array, " c"],
  bias: Float[Array, " c"],
  groups: int,
  epsilon: float,
  moments: Float[Array, "2 b groups"] | None,
) -> Float[Array, "b l c"]:
  """(x - mean) / sqrt(variance + epsilon) * scale + bias, of every group.

  Channels are reduced over space first and over their group last, which
  XLA:CPU runs twice as fast as Flax's own.

  Args:
    moments: the means and variances in place of x's own.
  """
  if moments is None:
    x = x - _group_mean(x.mean(1), groups)[:, None]
    variance = _group_mean((x * x).mean(1), groups)[:, None]
  else:
    repeated = lambda each: each.repeat(x.shape[-1] // groups, -1)[:, None]
    mean, variance = map(repeated, moments)
    x = x - mean
  return x * (scale / jnp.sqrt(variance + epsilon)) + bias


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize_groups(
  x: Float[Array, "b l c"],
  scale: Float[Array, " c"],
  bias: Float[Array, " c"],
  groups: int,
  epsilon: float,
  is_activated: bool,
) -> Float[Array, "b l c"]:
  """`normalize_groups_by_xla` in fewer passes, and silu if `is_activated`."""
  return _forward(x, scale, bias, groups, epsilon, is_activated)[0]


def _forward(
  x: Array,
  scale: Array,
  bias: Array,
  groups: int,
  epsilon: float,
  is_activated: bool,
) -> tuple[Array, Saved]:
  mean = _group_mean(x.mean(1), groups)[:, None]
  variance = _group_mean(jnp.square(x - mean).mean(1), groups)[:, None]
  inverse = 1 / jnp.sqrt(variance + epsilon)
  # Vectors of channels, which are not computed again for every pixel.
  mean, inverse = lax.optimization_barrier((mean, inverse))
  y = (x - mean) * (inverse * scale) + bias
  y = jax.nn.silu(y) if is_activated else y
  return y, (x, scale, bias, mean, inverse)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _backward(
  groups: int, epsilon: float, is_activated: bool, saved: Saved, grad: Array
) -> tuple[Array, Array, Array]:
  """With z = (x - mean) / std and g = dy scale, g - mean(g) - z mean(g z)."""
  x, scale, bias, mean, inverse = saved
  if is_activated:
    y = (x - mean) * (inverse * scale) + bias
    weight = jax.nn.sigmoid(y)
    # The exponential is computed once, not in every sum.
    grad = lax.optimization_barrier(grad * weight * (1 + y * (1 - weight)))
  bias_grads = grad.sum(1)
  scale_grads = (grad * (x - mean)).sum(1) * inverse[:, 0]
  mean_of = lambda sums: _group_mean(sums * scale, groups)[:, None] / x.shape[1]
  factors = (
    inverse * scale,
    jnp.square(inverse) * mean_of(scale_grads),
    inverse * mean_of(bias_grads),
  )
  first, second, third = lax.optimization_barrier(factors)
  x_grad = grad * first - (x - mean) * second - third
  return x_grad, scale_grads.sum(0), bias_grads.sum(0)


normalize_groups.__wrapped__.defvjp(_forward, _backward)


def _group_mean(
  values: Float[Array, "b c"], groups: int
) -> Float[Array, "b c"]:
  """The mean of every group, for each of its channels."""
  b, c = values.shape
  means = values.reshape(b, groups, c // groups).mean(-1)
  return means.repeat(c // groups, -1)
