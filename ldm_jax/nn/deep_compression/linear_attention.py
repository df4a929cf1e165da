"""Attention of linear cost in the number of pixels, at several scales."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.initializers import torch_init
from ldm_jax.nn.layers import dense

_EPSILON = 1e-15  # diffusers' and EfficientViT's, added to the normaliser


def relu_attention(
  q: Float[Array, "b l n d"],
  k: Float[Array, "b m n d"],
  v: Float[Array, "b m n d"],
) -> Float[Array, "b l n d"]:
  """sum_m (q_l . k_m) v_m / sum_m (q_l . k_m), with relu(q) and relu(k).

  Cai et al. 2023 (EfficientViT), eq. 2: the sums over m are of k_m v_m^T and of
  k_m, one for all queries. Sums and quotient are float32, whatever q is.
  """
  q, k, v = (x.astype(jnp.float32) for x in (jax.nn.relu(q), jax.nn.relu(k), v))
  highest = jax.lax.Precision.HIGHEST
  summed = jnp.einsum("bmnd,bmne->bnde", k, v, precision=highest)
  total = jnp.einsum("blnd,bnde->blne", q, summed, precision=highest)
  mass = jnp.einsum("blnd,bnd->bln", q, k.sum(1), precision=highest)
  return total / (mass[..., None] + _EPSILON)


class DepthwiseConv(nn.Module):
  """A size x size convolution of every channel on its own, size odd.

  A sum of shifted products, which XLA:CPU runs ten times as fast as its
  convolutions of as many groups as channels.
  """

  size: int
  use_bias: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    size, (_, height, width, channels) = self.size, x.shape
    init = torch_init(size * size)
    shape = (size, size, 1, channels)
    kernel = self.param("kernel", init["kernel_init"], shape)
    half = size // 2
    # Rounded as the operands of a convolution, and summed in float32 as there.
    kernel, x = (a.astype(self.dtype) for a in (kernel, x))
    x = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    total = jnp.zeros((), jnp.float32)
    for i in range(size):
      for j in range(size):
        shifted = x[:, i : i + height, j : j + width].astype(jnp.float32)
        total = total + shifted * kernel[i, j, 0].astype(jnp.float32)
    if self.use_bias:
      bias = self.param("bias", init["bias_init"], (channels,))
      total = total + bias.astype(self.dtype).astype(jnp.float32)
    return total.astype(self.dtype)


class GroupedDense(nn.Module):
  """A matrix for each group of `width` channels, without a bias."""

  width: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    width, channels = self.width, x.shape[-1]
    init = torch_init(width)["kernel_init"]
    kernel = self.param("kernel", init, (1, 1, width, channels))
    matrices = kernel.astype(self.dtype).reshape(width, -1, width)
    groups = x.astype(self.dtype).reshape(*x.shape[:-1], -1, width)
    return jnp.einsum("bhwgi,igo->bhwgo", groups, matrices).reshape(x.shape)


class MultiscaleLinearAttention(nn.Module):
  """`relu_attention` to the pixels and to their neighbourhoods.

  Queries, keys and values of further heads are made of the pixels' own by a
  depthwise convolution and a matrix for each group of channels. A head reads
  its q, k and v from 3 * head_width channels that follow each other in the
  projection, of which the three parameters `qkv_0`, `qkv_1` and `qkv_2` are
  thirds.

  Attributes:
    head_width: of a head; as many heads as fit into the channels.
    scales: sizes of the neighbourhoods, odd, in addition to the pixels.
  """

  head_width: int
  scales: tuple[int, ...]
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    batch, height, width, channels = x.shape
    inner = channels // self.head_width * self.head_width
    project = lambda features, name, h: dense(
      h, features, name=name, use_bias=False, dtype=self.dtype
    )
    thirds = [project(inner, f"qkv_{i}", x) for i in range(3)]
    qkv = jnp.concatenate(thirds, axis=-1)
    every = [qkv]
    for i, size in enumerate(self.scales):
      name = f"scale_{i}_depthwise"
      h = DepthwiseConv(size, False, self.dtype, name=name)(qkv)
      name = f"scale_{i}_heads"
      every.append(GroupedDense(self.head_width, self.dtype, name=name)(h))
    heads = jnp.concatenate(every, axis=-1)
    heads = heads.reshape(batch, height * width, -1, 3, self.head_width)
    h = relu_attention(*jnp.unstack(heads, axis=3)).astype(self.dtype)
    return project(channels, "out", h.reshape(batch, height, width, -1))
