"""Blocks of the deep compression autoencoder (Chen et al. 2024)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.deep_compression.linear_attention import (
  DepthwiseConv,
  MultiscaleLinearAttention,
)
from ldm_jax.nn.layers import conv, dense, upsample_conv

Norm = Literal["rms", "batch"]
Activation = Literal["silu", "relu", "gelu", "mish"]
Resampling = Literal["pixels", "conv"]

_EPSILON = 1e-5  # of both norms
_EXPANSION = 4  # of the gated convolution


def activate(x: Array, activation: Activation) -> Array:
  """The activation of a name; gelu is the exact one."""
  if activation == "gelu":
    return jax.nn.gelu(x, approximate=False)
  return getattr(jax.nn, activation)(x)


def space_to_channel(x: Float[Array, "b H W c"]) -> Float[Array, "b h w 4*c"]:
  """2 x 2 pixels as channels, the four of a channel one after another."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
  return x.transpose(0, 1, 3, 5, 2, 4).reshape(
    batch, height // 2, width // 2, 4 * channels
  )


def channel_to_space(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w d"]:
  """The inverse of `space_to_channel`."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height, width, channels // 4, 2, 2)
  return x.transpose(0, 1, 4, 2, 5, 3).reshape(
    batch, 2 * height, 2 * width, channels // 4
  )


def average_channels(
  x: Float[Array, "b h w c"], features: int
) -> Float[Array, "b h w d"]:
  """Means of c / features channels that follow each other."""
  groups = x.reshape(*x.shape[:-1], features, -1)
  return groups.mean(-1, dtype=jnp.float32).astype(x.dtype)


def repeat_channels(
  x: Float[Array, "b h w c"], features: int
) -> Float[Array, "b h w d"]:
  """Every channel features / c times, one after another."""
  return x.repeat(features // x.shape[-1], axis=-1)


class ChannelNorm(nn.Module):
  """A norm of every pixel, or of every channel with stored statistics.

  "rms" is x / sqrt(mean_c x^2 + 1e-5) (Zhang and Sennrich 2019), and "batch"
  (x - mean) / sqrt(var + 1e-5) with the statistics of published weights, which
  are constants: no gradient reaches them, nor are they measured in training.
  Both are followed by scale and bias, in float32.
  """

  kind: Norm
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    shape = x.shape[-1:]
    scale = self.param("scale", ones, shape)
    bias = self.param("bias", zeros, shape)
    x = x.astype(jnp.float32)
    if self.kind == "batch":
      mean = jax.lax.stop_gradient(self.param("mean", zeros, shape))
      x, square = x - mean, self.param("var", ones, shape)
      square = jax.lax.stop_gradient(square)
    else:
      square = jnp.mean(x * x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(square + _EPSILON) * scale + bias
    return x.astype(self.dtype)


class DCResBlock(nn.Module):
  """x + norm(conv(activation(conv(x))))."""

  norm: Norm
  activation: Activation
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    width, dtype = x.shape[-1], self.dtype
    h = activate(conv(x, width, name="conv1", dtype=dtype), self.activation)
    h = conv(h, width, name="conv2", use_bias=False, dtype=dtype)
    return x + ChannelNorm(self.norm, dtype, name="norm")(h)


class GatedConv(nn.Module):
  """x + norm(W (a silu(g))), [a | g] = depthwise(silu(V x)), V to 8c channels.

  A gated linear unit in an inverted bottleneck (Xie et al. 2024, SANA).
  """

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    width, dtype = x.shape[-1], self.dtype
    h = dense(x, 2 * _EXPANSION * width, name="up", dtype=dtype)
    h = DepthwiseConv(3, True, dtype, name="depthwise")(jax.nn.silu(h))
    h, gate = jnp.split(h, 2, axis=-1)
    h = h * jax.nn.silu(gate)
    h = dense(h, width, name="down", use_bias=False, dtype=dtype)
    return x + ChannelNorm("rms", dtype, name="norm")(h)


class EfficientViTBlock(nn.Module):
  """x + norm(linear attention(x)), followed by a `GatedConv`."""

  head_width: int
  scales: tuple[int, ...]
  norm: Norm
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    h = MultiscaleLinearAttention(
      self.head_width, self.scales, self.dtype, name="attention"
    )(x)
    x = x + ChannelNorm(self.norm, self.dtype, name="attention_norm")(h)
    return GatedConv(self.dtype, name="gated_conv")(x)


def halve(
  x: Float[Array, "b H W c"],
  features: int,
  resampling: Resampling,
  *,
  name: str,
  dtype: DTypeLike,
) -> Float[Array, "b h w d"]:
  """A 3 x 3 convolution to half the height and width.

  It has stride 2 ("conv"), or a quarter of the features, of which
  `space_to_channel` makes all ("pixels").
  """
  if resampling == "conv":
    return conv(x, features, name=name, stride=2, dtype=dtype)
  return space_to_channel(conv(x, features // 4, name=name, dtype=dtype))


def double(
  x: Float[Array, "b h w c"],
  features: int,
  resampling: Resampling,
  *,
  name: str,
  dtype: DTypeLike,
) -> Float[Array, "b 2*h 2*w d"]:
  """A 3 x 3 convolution to twice the height and width.

  It follows nearest-neighbour upsampling ("conv"), or precedes
  `channel_to_space` with four times the features ("pixels").
  """
  if resampling == "conv":
    return upsample_conv(x, features, name=name, dtype=dtype)
  return channel_to_space(conv(x, 4 * features, name=name, dtype=dtype))
