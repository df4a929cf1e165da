"""Convolutions, norms and embeddings, initialised as in PyTorch and LDM.

PyTorch draws weights and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), and so
does LDM. Flax's own default has three times the variance.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.initializers import ZERO_INIT, torch_init
from ldm_jax.nn.operators.choice import is_normalized_at_once
from ldm_jax.nn.operators.convolution import (
  convolve,
  convolve_doubled,
  double,
)
from ldm_jax.nn.operators.group_normalization import (
  normalize_groups,
  normalize_groups_by_xla,
)
from ldm_jax.nn.operators.rows import on_rows, product

Remat = Literal["off", "dots", "full"]


def remat_policy(remat: Remat, module: type[nn.Module]) -> type[nn.Module]:
  """`module` with rematerialisation  (Chen et al. 2016).

  "off" stores everything for the backward pass, "full" a module's inputs alone,
  and "dots" also the results of convolutions and of products with a matrix,
  but not attention's scores (dots_with_no_batch_dims_saveable of JAX, and
  convolutions, but for those of 3 x 3 by `operators`' algorithms on a CPU).
  """
  if remat == "off":
    return module
  return nn.remat(module, policy=_is_saved_dot if remat == "dots" else None)


def _is_saved_dot(primitive: Any, *_: Any, **params: Any) -> bool:
  if primitive.name == "dot_general":
    _, (batched, _) = params["dimension_numbers"]
    return not batched
  return primitive.name == "conv_general_dilated"


def conv(
  x: Float[Array, "b h w c"],
  features: int,
  *,
  name: str,
  size: int = 3,
  stride: int = 1,
  use_bias: bool = True,
  is_zero: bool = False,
  dtype: DTypeLike,
) -> Float[Array, "b h2 w2 d"]:
  """A size x size convolution, padded on every side; `is_zero` starts at 0."""
  init = ZERO_INIT if is_zero else torch_init(size * size * x.shape[-1])
  window = (size, size)
  layer = nn.Conv(
    features,
    window,
    (stride, stride),
    padding=size // 2,
    use_bias=use_bias,
    dtype=dtype,
    name=name,
    conv_general_dilated=convolve,
    **init,
  )
  return layer(x)


def upsample_conv(
  x: Float[Array, "b h w c"],
  features: int,
  *,
  name: str,
  size: tuple[int, int] | None = None,
  dtype: DTypeLike,
) -> Float[Array, "b h2 w2 d"]:
  """A 3 x 3 `conv` of `upsample` of x, as one operator where that is faster.

  `size` cuts the upsampled x to a smaller height and width.
  """
  doubled = 2 * x.shape[1], 2 * x.shape[2]
  if size is not None and tuple(size) != doubled:
    x = upsample(x)[:, : size[0], : size[1]]
    return conv(x, features, name=name, dtype=dtype)
  layer = nn.Conv(
    features,
    (3, 3),
    padding=1,
    dtype=dtype,
    name=name,
    conv_general_dilated=convolve_doubled,
    **torch_init(9 * x.shape[-1]),
  )
  return layer(x)


def dense(
  x: Float[Array, "... c"],
  features: int,
  *,
  name: str,
  use_bias: bool = True,
  is_zero: bool = False,
  dtype: DTypeLike,
) -> Float[Array, "... d"]:
  """x W + b over the last axis; `is_zero` starts at 0."""
  init = ZERO_INIT if is_zero else torch_init(x.shape[-1])
  layer = nn.Dense(
    features, use_bias, dtype=dtype, name=name, dot_general=product, **init
  )
  return on_rows(layer, x)


def check_widths(
  channels: int, multipliers: tuple[int, ...], groups: int
) -> None:
  """Checks the widths `channels` * multiplier of the levels of a network.

  Raises:
    ValueError: there is no level, a width is not positive, or it does not
      divide into the groups of its group norms.
  """
  if not multipliers or min(channels, groups, *multipliers) < 1:
    raise ValueError(
      f"channels={channels}, multipliers={multipliers} and groups={groups} "
      "must be positive"
    )
  for multiplier in multipliers:
    if channels * multiplier % groups:
      raise ValueError(
        f"channels={channels} * {multiplier} do not divide into "
        f"groups={groups}; set groups to a divisor of every level's channels"
      )


class GroupNorm(nn.Module):
  """Wu and He 2018, in float32 and with the two-pass variance.

  Decoder activations have means far above their deviations; the one-pass
  formula loses two digits there.

  Attributes:
    is_activated: silu of the result.
  """

  groups: int
  epsilon: float
  dtype: DTypeLike
  is_activated: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b *space c"],
    moments: Float[Array, "2 b groups"] | None = None,
  ) -> Float[Array, "b *space c"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias.

    Args:
      moments: mean and variance of every group, where x is a part of an image
        and they are those of the whole; by default x's own.
    """
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    # Parameters of an export are arrays of numpy.
    scale, bias = jnp.asarray(scale), jnp.asarray(bias)
    rows = x.astype(jnp.float32).reshape(x.shape[0], -1, channels)
    options = rows, scale, bias, self.groups, self.epsilon
    if moments is None and is_normalized_at_once(x.shape, x.dtype):
      rows = normalize_groups(*options, self.is_activated)
      return rows.reshape(x.shape).astype(self.dtype)
    rows = normalize_groups_by_xla(*options, moments)
    y = rows.reshape(x.shape).astype(self.dtype)
    return jax.nn.silu(y) if self.is_activated else y


def group_norm(
  x: Float[Array, "b *space c"],
  *,
  name: str,
  groups: int,
  epsilon: float,
  dtype: DTypeLike,
  is_activated: bool = False,
) -> Float[Array, "b *space c"]:
  """`GroupNorm` of x, and silu of it if `is_activated`.

  Raises:
    ValueError: if the channels do not divide into the groups.
  """
  if x.shape[-1] % groups:
    raise ValueError(
      f"{x.shape[-1]} channels do not divide into {groups} norm groups; set "
      "`groups` to a divisor of every level's channels"
    )
  return GroupNorm(groups, epsilon, dtype, is_activated, name=name)(x)


def layer_norm(
  x: Float[Array, "... c"], *, name: str, dtype: DTypeLike
) -> Float[Array, "... c"]:
  """Over the last axis in float32, epsilon 1e-5 (PyTorch's default)."""
  norm = nn.LayerNorm(
    epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, name=name
  )
  return norm(x.astype(jnp.float32)).astype(dtype)


def sinusoids(
  t: Float[Array, " b"], width: int, shift: int = 0
) -> Float[Array, "b width"]:
  """[cos(t f_i) | sin(t f_i)], f_i = 10000^(-i / (half - shift)).

  half = width // 2 (Vaswani et al. 2017, 3.5); t is not scaled to [0, 1].
  """
  count = jnp.arange(width // 2)
  frequencies = jnp.exp(-jnp.log(10000.0) * count / (width // 2 - shift))
  angles = t.astype(jnp.float32)[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def guidance_sinusoids(
  scale: Float[Array, " b"] | None, width: int
) -> Float[Array, "b width"]:
  """[sin(w f_i) | cos(w f_i)], w = 1000 (scale - 1), as LCM's U-Nets read.

  f_i = 10000^(-i / (half - 1)), half = width // 2.

  Raises:
    ValueError: the condition has no scale of guidance.
  """
  if scale is None:
    raise ValueError(
      "the U-Net embeds the scale of guidance (guidance_width), and the "
      "condition has none"
    )
  half = width // 2
  exponents = jnp.arange(half) / max(1, half - 1)
  w = 1000 * (scale.astype(jnp.float32)[:, None] - 1)
  angles = w * jnp.exp(-jnp.log(10000.0) * exponents)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """Nearest neighbour, to twice the height and width."""
  return double(x)


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """The mean of every 2 x 2 cell."""
  return nn.avg_pool(x, (2, 2), (2, 2))


def downsample(
  x: Float[Array, "b h w c"],
  *,
  name: str,
  padding: tuple[int, int],
  dtype: DTypeLike,
) -> Float[Array, "b h2 w2 c"]:
  """A 3 x 3 convolution of stride 2 after `padding` (before, after) zeros.

  The U-Net pads (1, 1), the autoencoder (0, 1); both keep the channels.
  """
  channels = x.shape[-1]
  layer = nn.Conv(
    channels,
    (3, 3),
    strides=2,
    padding=(padding, padding),
    dtype=dtype,
    name=name,
    **torch_init(9 * channels),
  )
  return layer(x)
