"""The residual block shared by the autoencoder and the U-Net."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.layers import average_pool, conv, dense, group_norm, upsample

_RESAMPLE = {"up": upsample, "down": average_pool}


class ResBlock(nn.Module):
  """x + conv(silu(norm(conv(silu(norm(x))) + emb)))  (Ho et al. 2020, app. B).

  Attributes:
    features: channels of the result; if x has another number, the shortcut has
      a 1 x 1 convolution.
    epsilon: of the norms, 1e-5 in the U-Net, 1e-6 in the autoencoder.
    is_zero: initialise the last convolution at zero, so that a new block with
      an identity shortcut is the identity.
    modulation: how the embedding enters: added, or as scale and shift of the
      second norm (Dhariwal and Nichol 2021, section 3).
    resample: double or halve h and w inside the block.
    dropout: its rate, applied where a "dropout" rng is given.
  """

  features: int
  epsilon: float = 1e-5
  is_zero: bool = True
  modulation: Literal["add", "scale_shift"] = "add"
  resample: Literal["up", "down"] | None = None
  dropout: float = 0.0
  groups: int = 32
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    emb: Float[Array, "b e"] | None = None,
  ) -> Float[Array, "b h2 w2 d"]:
    norm = functools.partial(
      group_norm,
      groups=self.groups,
      epsilon=self.epsilon,
      dtype=self.dtype,
      is_activated=True,
    )
    h = norm(x, name="norm1")
    if self.resample is not None:
      h, x = _RESAMPLE[self.resample](h), _RESAMPLE[self.resample](x)
    h = conv(h, self.features, name="conv1", dtype=self.dtype)
    if emb is None:
      h = norm(h, name="norm2")
    elif self.modulation == "add":
      shift = dense(
        jax.nn.silu(emb), self.features, name="emb", dtype=self.dtype
      )
      h = norm(h + shift[:, None, None], name="norm2")
    else:
      both = dense(
        jax.nn.silu(emb), 2 * self.features, name="emb", dtype=self.dtype
      )
      scale, shift = jnp.split(both[:, None, None], 2, axis=-1)
      h = norm(h, name="norm2", is_activated=False) * (1 + scale) + shift
      h = jax.nn.silu(h)
    h = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(h)
    h = conv(
      h, self.features, name="conv2", is_zero=self.is_zero, dtype=self.dtype
    )
    if x.shape[-1] != self.features:
      x = conv(x, self.features, name="shortcut", size=1, dtype=self.dtype)
    return x + h
