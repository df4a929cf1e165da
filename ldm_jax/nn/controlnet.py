"""A second way down that reads a picture, and adds to the first."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.layers import conv
from ldm_jax.nn.unet import UNet

Residuals = tuple[Float[Array, "b ..."], ...]


class ControlNet(UNet):
  """ControlNet  (Zhang et al. 2023, figure 3): a U-Net's half that copies it.

  Its fields are those of the U-Net it controls. Zero convolutions make a fresh
  one add nothing.

  Attributes:
    hint_channels: of the small encoder, whose every level but the first halves
      the picture.
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
    """What to add to every skip connection, and last to the middle.

    Args:
      hint: edges, depth, a pose, ... in [0, 1], as large as the image.
    """
    emb = self.embed(t, condition.vector)
    h = conv(
      xt.astype(self.dtype), self.channels, name="conv_in", dtype=self.dtype
    )
    h, skips = self.descend(h + self.look(hint), emb, condition.context)
    h = self.middle(h, emb, condition.context)
    return (
      *(self.zero(skip, f"control_{i}") for i, skip in enumerate(skips)),
      self.zero(h, "control_mid"),
    )

  def look(self, hint: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
    """The picture at the latents' size and the first level's width."""
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

  def zero(self, h: Array, name: str) -> Array:
    """A 1 x 1 convolution that begins at 0."""
    return conv(
      h, h.shape[-1], name=name, size=1, is_zero=True, dtype=self.dtype
    )


def controlled(
  condition: Condition, said: Residuals, share: Float[Array, " b"]
) -> Condition:
  """The condition with what a ControlNet said, scaled where it is to speak.

  Args:
    share: t / T of every image.
  """
  scale, start, stop = condition.control.T
  scale = jnp.where((start <= share) & (share <= stop), scale, 0.0)
  scaled = [scale[:, None, None, None] * residual for residual in said]
  return condition.replace(residuals=scaled)
