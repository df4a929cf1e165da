"""The Inception v3 of FID: the network of 2015-12-05.

It differs from torchvision's: means exclude padding, the last block takes a
maximum, and there are 1,008 classes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

IMAGE_SIZE = 299  # sides of its input
CLASSES = 1008
EPSILON = 1e-3  # of the batch norms
SPATIAL = 7  # channels of mixed_6d's first branch that sFID uses

Size = tuple[int, int]
ONE, THREE, FIVE = (1, 1), (3, 3), (5, 5)
WIDE, TALL = (1, 7), (7, 1)


class Features(NamedTuple):
  """Features of b images, on devices or on the host.

  Attributes:
    first, second, third: [b 64], [b 192], [b 768], means over the image before
      the second pooling, the third, and the seventh block.
    pooled: [b 2048], the mean over the image of the last block ("pool3"), for
      FID.
    spatial: [b 2023], part of `mixed_6d`, flattened row by row, for sFID.
    logits: [b 1008], without their bias, for the inception score.
  """

  first: Any
  second: Any
  third: Any
  pooled: Any
  spatial: Any
  logits: Any


class ConvUnit(nn.Module):
  """Convolution, batch norm with stored moments, ReLU."""

  features: int
  size: Size
  stride: int = 1
  is_padded: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
    pads = [(s // 2, s // 2) if self.is_padded else (0, 0) for s in self.size]
    x = nn.Conv(
      self.features,
      self.size,
      (self.stride, self.stride),
      padding=pads,
      use_bias=False,
      precision=jax.lax.Precision.HIGHEST,
      name="conv",
    )(x)
    x = nn.BatchNorm(True, epsilon=EPSILON, use_fast_variance=False, name="bn")(
      x
    )
    return nn.relu(x)


class Inception(nn.Module):
  """Szegedy et al. 2016, as TensorFlow's `classify_image_graph_def.pb` has it.

  New parameters are random, for tests alone.
  """

  @nn.compact
  def __call__(self, x: Float[Array, "b 299 299 3"]) -> Features:
    """Features of images, (byte - 128) / 128."""
    x = ConvUnit(32, THREE, 2, name="conv_1a")(x)
    x = ConvUnit(32, THREE, name="conv_2a")(x)
    x = ConvUnit(64, THREE, is_padded=True, name="conv_2b")(x)
    x = first = nn.max_pool(x, THREE, (2, 2))
    x = ConvUnit(80, ONE, name="conv_3b")(x)
    x = ConvUnit(192, THREE, name="conv_4a")(x)
    x = second = nn.max_pool(x, THREE, (2, 2))
    for name, width in (("5b", 32), ("5c", 64), ("5d", 64)):
      x = _A(width, name=f"mixed_{name}")(x)
    x = _B(name="mixed_6a")(x)
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
      x = _C(width, name=f"mixed_{name}")(x)
      if name == "6d":
        spatial = x[..., :SPATIAL]
    third = x
    x = _D(name="mixed_7a")(x)
    x = _E(nn.avg_pool, name="mixed_7b")(x)
    x = _E(nn.max_pool, name="mixed_7c")(x)
    mean = lambda h: h.mean((1, 2))
    pooled = mean(x)
    kernel = self.param(
      "fc", nn.initializers.lecun_normal(), (pooled.shape[-1], CLASSES)
    )
    return Features(
      mean(first),
      mean(second),
      mean(third),
      pooled,
      spatial.reshape(len(spatial), -1),
      jnp.dot(pooled, kernel, precision=jax.lax.Precision.HIGHEST),
    )


def _chain(x: Array, name: str, *units: tuple[int, Size]) -> Array:
  """Padded units, one after another, as branch NAME_1, NAME_2, ..."""
  for number, (features, size) in enumerate(units, 1):
    unit = ConvUnit(features, size, is_padded=True, name=f"{name}_{number}")
    x = unit(x)
  return x


def _pool(x: Array, pool=nn.avg_pool) -> Array:
  """Over 3 x 3; a mean excludes the padding."""
  padding = ((1, 1), (1, 1))
  if pool is nn.max_pool:
    return nn.max_pool(x, THREE, padding=padding)
  return nn.avg_pool(x, THREE, padding=padding, count_include_pad=False)


class _A(nn.Module):
  """Blocks of 35 x 35."""

  pool_features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    branches = [
      ConvUnit(64, ONE, name="branch1x1")(x),
      _chain(x, "branch5x5", (48, ONE), (64, FIVE)),
      _chain(x, "branch3x3dbl", (64, ONE), (96, THREE), (96, THREE)),
      ConvUnit(self.pool_features, ONE, name="branch_pool")(_pool(x)),
    ]
    return jnp.concatenate(branches, -1)


class _B(nn.Module):
  """From 35 x 35 to 17 x 17."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    double = _chain(x, "branch3x3dbl", (64, ONE), (96, THREE))
    branches = [
      ConvUnit(384, THREE, 2, name="branch3x3")(x),
      ConvUnit(96, THREE, 2, name="branch3x3dbl_3")(double),
      nn.max_pool(x, THREE, (2, 2)),
    ]
    return jnp.concatenate(branches, -1)


class _C(nn.Module):
  """Blocks of 17 x 17."""

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    w = self.width
    double = ((w, ONE), (w, TALL), (w, WIDE), (w, TALL), (192, WIDE))
    branches = [
      ConvUnit(192, ONE, name="branch1x1")(x),
      _chain(x, "branch7x7", (w, ONE), (w, WIDE), (192, TALL)),
      _chain(x, "branch7x7dbl", *double),
      ConvUnit(192, ONE, name="branch_pool")(_pool(x)),
    ]
    return jnp.concatenate(branches, -1)


class _D(nn.Module):
  """From 17 x 17 to 8 x 8."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    one = _chain(x, "branch3x3", (192, ONE))
    other = _chain(x, "branch7x7x3", (192, ONE), (192, WIDE), (192, TALL))
    branches = [
      ConvUnit(320, THREE, 2, name="branch3x3_2")(one),
      ConvUnit(192, THREE, 2, name="branch7x7x3_4")(other),
      nn.max_pool(x, THREE, (2, 2)),
    ]
    return jnp.concatenate(branches, -1)


class _E(nn.Module):
  """Blocks of 8 x 8."""

  pool: object

  @nn.compact
  def __call__(self, x: Array) -> Array:
    def fork(h: Array, name: str) -> Array:
      sides = (("a", (1, 3)), ("b", (3, 1)))
      outputs = [
        ConvUnit(384, size, is_padded=True, name=f"{name}{side}")(h)
        for side, size in sides
      ]
      return jnp.concatenate(outputs, -1)

    branches = [
      ConvUnit(320, ONE, name="branch1x1")(x),
      fork(_chain(x, "branch3x3", (384, ONE)), "branch3x3_2"),
      fork(
        _chain(x, "branch3x3dbl", (448, ONE), (384, THREE)), "branch3x3dbl_3"
      ),
      ConvUnit(192, ONE, name="branch_pool")(_pool(x, self.pool)),
    ]
    return jnp.concatenate(branches, -1)
