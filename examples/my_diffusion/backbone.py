"""A backbone: a Fourier mixer instead of a U-Net."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.layers import sinusoids


class FourierMixer(nn.Module):
  """Mixes positions by a Fourier transform  (FNet, Lee-Thorp et al. 2021).

  Attributes:
    channels: width of every layer.
    depth: blocks, each a Fourier transform and a feed-forward layer.
  """

  channels: int = 32
  depth: int = 2

  size_multiple = 1  # latents of any height and width

  @nn.compact
  def __call__(
    self,
    xt: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    condition: Condition,
  ) -> Float[Array, "b h w c"]:
    emb = nn.Dense(self.channels, name="time")(sinusoids(t, self.channels))
    if condition.vector is not None:
      emb += nn.Dense(self.channels, name="vector")(condition.vector)
    if condition.context is not None:  # no cross-attention: the tokens' mean
      emb += nn.Dense(self.channels, name="context")(condition.context.mean(1))
    h = xt
    if condition.concat is not None:
      h = jnp.concatenate([h, condition.concat], axis=-1)
    h = nn.Dense(self.channels, name="in")(h) + emb[:, None, None]
    for i in range(self.depth):
      mixed = jnp.fft.fft2(nn.LayerNorm(name=f"norm_{i}")(h), axes=(1, 2)).real
      h += mixed / (h.shape[1] * h.shape[2]) ** 0.5
      wide = nn.gelu(nn.Dense(2 * self.channels, name=f"up_{i}")(h))
      h += nn.Dense(self.channels, name=f"down_{i}")(wide)
    return nn.Dense(
      xt.shape[-1], kernel_init=nn.initializers.zeros, name="out"
    )(h)
