"""The discriminator of the adversarial loss: one logit per image patch."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count, Natural


class PatchDiscriminator(nn.Module):
  """PatchGAN (Isola et al. 2017, sec. 3.2.2; NLayerDiscriminator of LDM).

  Attributes:
    width: channels of the first convolution; they double up to eightfold.
    layers: convolutions of stride two. The receptive field of a logit is 70
      pixels squared with three, 34 with two.
  """

  width: Count = 64
  layers: Natural = 3
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(
    self, images: Float[Array, "b h w c"]
  ) -> Float[Array, "b _ _ 1"]:
    """Logits, positive for "real", of images in [-1, 1].

    Statistics are taken over the batch: call it once for real images and once
    for reconstructions, as the reference does.

    Raises:
      ValueError: the images are too small for one logit.
    """
    least = 3 * 2**self.layers
    if min(images.shape[1:3]) < least:
      raise ValueError(
        f"images of {images.shape[1]}x{images.shape[2]} pixels are too small "
        f"for a discriminator of {self.layers} layers, which needs "
        f"{least}x{least}; try fewer layers"
      )
    x = images.astype(self.dtype)
    for layer in range(self.layers + 1):
      stride = 2 if layer < self.layers else 1
      width = self.width * min(2**layer, 8)
      x = self.conv(x, width, stride, use_bias=layer == 0, name=f"conv{layer}")
      if layer > 0:
        x = BatchNorm(name=f"norm{layer}")(x).astype(self.dtype)
      x = nn.leaky_relu(x, 0.2)
    x = self.conv(x, 1, 1, use_bias=True, name=f"conv{self.layers + 1}")
    return x.astype(jnp.float32)

  def conv(self, x, width, stride, *, use_bias, name):
    """A 4 x 4 convolution, initialised as in pix2pix."""
    bound = (4 * 4 * x.shape[-1]) ** -0.5  # torch's default: 1 / sqrt(fan-in)
    return nn.Conv(
      width,
      (4, 4),
      stride,
      padding=1,
      use_bias=use_bias,
      kernel_init=nn.initializers.normal(0.02),
      bias_init=lambda key, shape, dtype: jax.random.uniform(
        key, shape, dtype, -bound, bound
      ),
      dtype=self.dtype,
      name=name,
    )(x)


class BatchNorm(nn.Module):
  """(x - mean) / sqrt(var + 1e-5) over batch and space, in float32.

  Flax's own keeps running averages for evaluation, a state in addition to the
  parameters; a discriminator is never evaluated and needs none. Under jit the
  batch is the global one, so the result does not depend on the number of
  devices.
  """

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    shape = x.shape[-1:]
    scale = self.param("scale", _normal_around_one, shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
    x = x.astype(jnp.float32)
    centred = x - x.mean((0, 1, 2))
    variance = (centred**2).mean((0, 1, 2))  # torch's, too, is the biased one
    return centred * jax.lax.rsqrt(variance + 1e-5) * scale + bias


def _normal_around_one(key, shape, dtype):
  """N(1, 0.02): `weights_init` of pix2pix, which LDM keeps."""
  return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


def hinge_loss(
  real_logits: Float[Array, "b h w 1"], fake_logits: Float[Array, "b h w 1"]
) -> Float[Array, ""]:
  """(mean max(0, 1 - D(x)) + mean max(0, 1 + D(r))) / 2  (Lim & Ye 2017)."""
  real = nn.relu(1.0 - real_logits).mean()
  fake = nn.relu(1.0 + fake_logits).mean()
  return 0.5 * (real + fake)


def vanilla_loss(
  real_logits: Float[Array, "b h w 1"], fake_logits: Float[Array, "b h w 1"]
) -> Float[Array, ""]:
  """(mean log(1 + e^-D(x)) + mean log(1 + e^D(r))) / 2.

  Half of eq. 1 of Goodfellow et al. 2014, negated, at D = sigmoid(logit).
  """
  real = nn.softplus(-real_logits).mean()
  fake = nn.softplus(fake_logits).mean()
  return 0.5 * (real + fake)


def generator_loss(fake_logits: Float[Array, "b h w 1"]) -> Float[Array, ""]:
  """-mean D(r), the loss of the autoencoder for either discriminator loss."""
  return -fake_logits.mean()
