"""An autoencoder whose decoder sees the known part of an inpainted image.

The asymmetric VQGAN of Zhu et al. 2023 (arXiv 2306.04632), which diffusers
calls AsymmetricAutoencoderKL.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.initializers import torch_init
from ldm_jax.nn.layers import conv


class ImageFeatures(nn.Module):
  """Features of an image at every size of the decoder, the finest first.

  For levels of widths (a, b, c, d) they are a and b at full size, c at half of
  it, d at a quarter and d at an eighth: what follows the last level's blocks,
  and what each level's blocks take.
  """

  trunk: ConvStack

  @nn.compact
  def __call__(
    self, images: Float[Array, "b H W 3"]
  ) -> list[Float[Array, "b h w c"]]:
    widths = [self.trunk.channels * m for m in self.trunk.multipliers]
    found, h = [], images
    for i, width in enumerate([*widths, widths[-1]]):
      if i < 2:
        h = conv(h, width, name=f"layer_{i}", dtype=self.trunk.dtype)
      else:
        h = _halved(h, width, f"layer_{i}", self.trunk)
      found.append(h)
      h = jax.nn.relu(h)
    return found


def _halved(h: Array, width: int, name: str, trunk: ConvStack) -> Array:
  """A 4 x 4 convolution of stride 2."""
  init = torch_init(16 * h.shape[-1])
  layer = nn.Conv(
    width, (4, 4), 2, padding=1, dtype=trunk.dtype, name=name, **init
  )
  return layer(h)


class InpaintingDecoder(nn.Module):
  """The decoder, which takes features of the known pixels in place of its own.

  At every size h = m h + (1 - m) f, where m is 1 in the hole, nearest
  neighbour, and f are `ImageFeatures` of the image with a zero hole.
  """

  trunk: ConvStack
  features: int
  has_quant_conv: bool = True

  @nn.compact
  def __call__(
    self,
    latents: Float[Array, "b h w c"],
    images: Float[Array, "b H W 3"] | None = None,
    masks: Float[Array, "b H W 1"] | None = None,
  ) -> Float[Array, "b H W 3"]:
    trunk = self.trunk
    width = trunk.channels * trunk.multipliers[-1]
    h = latents
    if self.has_quant_conv:
      h = conv(
        h, self.features, name="post_quant_conv", size=1, dtype=trunk.dtype
      )
    h = trunk.middle(conv(h, width, name="conv_in", dtype=trunk.dtype))
    known = None
    if images is not None:
      hidden = images * (1 - masks)
      known = ImageFeatures(trunk, name="image_features")(hidden)
    for level in reversed(range(trunk.halvings + 1)):
      h = _with_known(h, known, masks, level + 1)
      h = trunk.up_level(h, level)
    h = _with_known(h, known, masks, 0)
    return trunk.out(h, 3).astype(jnp.float32)


def _with_known(
  h: Array, known: list[Array] | None, masks: Array | None, index: int
) -> Array:
  if known is None:
    return h
  step = masks.shape[1] // h.shape[1]
  hole = masks[:, ::step, ::step].astype(h.dtype)
  return hole * h + (1 - hole) * known[index]


class InpaintingAutoencoder(Autoencoder):
  """An `Autoencoder` that decodes with the known part of an image.

  Without an image it decodes as an `Autoencoder` does. Its encoder is that of
  the denoiser's first stage, so it takes its place for inpainting; it is
  `decoder_trunk`, wider and deeper, that repairs what latents lose.
  """

  def setup(self):
    moments = self.bottleneck.expansion * self.latent_channels
    self.encoder = self.make_encoder(moments)
    self.decoder = InpaintingDecoder(
      self.decoder_trunk or self.trunk,
      self.latent_channels,
      self.has_post_quant_conv,
    )

  def decode(
    self,
    latents: Float[Array, "b h w c"],
    images: Float[Array, "b H W 3"] | None = None,
    masks: Float[Array, "b H W 1"] | None = None,
  ) -> Float[Array, "b H W 3"]:
    """Images of latents, about [-1, 1], not clipped.

    Args:
      images: whose pixels outside the hole are known, in [-1, 1].
      masks: 1 in the hole, 0 where pixels are known.

    Raises:
      ValueError: one of the two is missing.
    """
    if (images is None) != (masks is None):
      raise ValueError("decoding with an image needs images and masks")
    return self.decoder(latents, images, masks)

  def __call__(
    self, images: Float[Array, "b h w 3"], noise: Float[Array, "b hz wz c"]
  ) -> tuple[Float[Array, "b h w 3"], Float[Array, ""]]:
    """Reconstructions from sampled latents alone, and the bottleneck's loss."""
    if self.is_initializing():
      hole = jnp.zeros((*images.shape[:3], 1))
      self.decode(noise, images, hole)
    return super().__call__(images, noise)
