"""ControlNet: a copy of the U-Net's encoder that reads a hint image."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.layers import conv
from ldm_jax.nn.unet import UNet

Residuals = tuple[Float[Array, "b ..."], ...]


class ControlNet(UNet):
  """ControlNet  (Zhang et al. 2023, figure 3).

  Its fields are those of the U-Net it controls. Because of zero convolutions a
  new one adds nothing.

  Attributes:
    hint_channels: of the hint's encoder, whose every level but the first
      halves the hint.
  """

  hint_channels: tuple[int, ...] = (16, 32, 96, 256)

  @nn.compact
  def __call__(
    self,
    xt: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    condition: Condition,
    hint: Float[Array, "b H W 3"],
  ) -> Residuals:
    """Residuals for every skip connection, and last for the middle.

    Args:
      hint: edges, depth, a pose, ... in [0, 1], of the size of the image.
    """
    emb = self.embed(t, condition)
    h = conv(
      xt.astype(self.dtype), self.channels, name="conv_in", dtype=self.dtype
    )
    h, skips = self.down_blocks(
      h + self.encode_hint(hint), emb, condition.context
    )
    h = self.mid_block(h, emb, condition.context)
    return (
      *(self.zero_conv(skip, f"control_{i}") for i, skip in enumerate(skips)),
      self.zero_conv(h, "control_mid"),
    )

  def encode_hint(
    self, hint: Float[Array, "b H W 3"]
  ) -> Float[Array, "b h w c"]:
    """The hint at the latents' size and the first level's width."""
    first, *rest = self.hint_channels
    h = hint.astype(self.dtype)
    h = jax.nn.silu(conv(h, first, name="hint_in", dtype=self.dtype))
    for i, width in enumerate(rest):
      name = f"hint_{2 * i}"
      h = jax.nn.silu(conv(h, h.shape[-1], name=name, dtype=self.dtype))
      name = f"hint_{2 * i + 1}"
      h = jax.nn.silu(conv(h, width, name=name, stride=2, dtype=self.dtype))
    return conv(
      h, self.channels, name="hint_out", is_zero=True, dtype=self.dtype
    )

  def zero_conv(self, h: Array, name: str) -> Array:
    """A 1 x 1 convolution that starts at 0."""
    return conv(
      h, h.shape[-1], name=name, size=1, is_zero=True, dtype=self.dtype
    )


def with_residuals(
  condition: Condition, residuals: Residuals, fraction: Float[Array, " b"]
) -> Condition:
  """The condition with a ControlNet's residuals, scaled by `condition.control`.

  Args:
    fraction: t / T of every image.
  """
  scale, start, stop = condition.control.T
  scale = jnp.where((start <= fraction) & (fraction <= stop), scale, 0.0)
  scaled = [scale[:, None, None, None] * residual for residual in residuals]
  return condition.replace(residuals=scaled)
