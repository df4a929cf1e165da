"""A classifier of noisy latents: a U-Net's encoder with attention pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.layers import conv, dense, group_norm
from ldm_jax.nn.transformer import Attention
from ldm_jax.nn.unet import EPSILON, UNet, coordinates


class EncoderUNet(UNet):
  """Logits of p(y | x_t): a U-Net's encoder, then attention pooling.

  The noisy classifier of Dhariwal and Nichol 2021 (section 4 and table 12),
  which LDM trains in latent space. The last level's pixels and their mean are
  tokens with learned positions; the mean attends to all of them and is
  projected to the logits. A new one gives all classes the same probability.

  Attributes:
    classes: their number.
    out_channels: without effect.
  """

  classes: Count = 1000

  @nn.compact
  def __call__(
    self, xt: Float[Array, "b h w c"], t: Float[Array, " b"]
  ) -> Float[Array, "b k"]:
    """Logits of the classes, float32."""
    emb = self.embed(t, Condition())
    h = xt.astype(self.dtype)
    if self.octaves:
      h = jnp.concatenate([h, coordinates(h, self.octaves)], axis=-1)
    h = conv(h, self.channels, name="conv_in", dtype=self.dtype)
    h, _ = self.down_blocks(h, emb, None)
    h = self.mid_block(h, emb, None)
    h = group_norm(
      h, name="norm_out", groups=self.groups, epsilon=EPSILON, dtype=self.dtype
    )
    tokens = jax.nn.silu(h).reshape(len(h), -1, h.shape[-1])
    tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)
    normal = nn.initializers.normal(tokens.shape[-1] ** -0.5)
    tokens = tokens + self.param("positions", normal, tokens.shape[1:])
    heads, width = self.attention.split(tokens.shape[-1])
    pool = Attention(
      heads,
      width,
      self.attention_backend,
      self.dtype,
      is_biased=True,
      name="pool",
    )
    pooled = pool(tokens[:, :1], tokens)[:, 0]
    return dense(
      pooled, self.classes, name="logits", is_zero=True, dtype="float32"
    )
