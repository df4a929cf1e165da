"""LPIPS: the perceptual distance of two images, by VGG16's features."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count

# Mean and deviation of ImageNet, for images in [-1, 1] instead of [0, 1]
# (ScalingLayer of the lpips package, v0.1).
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

STRIDE = 16  # of the last features: four poolings


class VGG16(nn.Module):
  """Features relu1_2, 2_2, 3_3, 4_3, 5_3 (Simonyan & Zisserman 2015, net D).

  Attributes:
    width: channels of the first stage, 64 in the paper; there are published
      weights for no other.
  """

  width: int = 64
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(
    self, images: Float[Array, "b h w 3"]
  ) -> list[Float[Array, "b _ _ _"]]:
    features, x = [], images.astype(self.dtype)
    for stage, (growth, depth) in enumerate(
      [(1, 2), (2, 2), (4, 3), (8, 3), (8, 3)], start=1
    ):
      if stage > 1:
        x = nn.max_pool(x, (2, 2), (2, 2))  # an odd last row is dropped
      for layer in range(1, depth + 1):
        x = nn.Conv(
          growth * self.width,
          (3, 3),
          padding=1,
          kernel_init=nn.initializers.he_normal(),
          dtype=self.dtype,
          name=f"conv{stage}_{layer}",
        )(x)
        x = nn.relu(x)
      features.append(x)
    return features


class LPIPS(nn.Module):
  """sum_l mean_hw w_l . (f_l(x) - f_l(y))^2  (Zhang et al. 2018, eq. 1).

  f_l are the features of VGG16 with unit norm over channels, w_l >= 0 a 1x1
  head. There is no dropout, which LDM leaves on in training by mistake.

  New parameters are the choice weights="random": a He-normal trunk, and heads
  uniform in [0, 0.2], whose mean is that of the published ones (measured: 0.07
  to 0.11). Distances are then not those of LPIPS.

  Attributes:
    width: channels of the trunk's first stage; see `VGG16`.
  """

  width: Count = 64
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]
  ) -> Float[Array, " b"]:
    """Distances of images in [-1, 1], in float32.

    Raises:
      ValueError: images are smaller than the stride of the last features.
    """
    if min(x.shape[1:3]) < STRIDE:
      raise ValueError(
        f"images of {x.shape[1]}x{x.shape[2]} pixels are too small for LPIPS, "
        f"which needs {STRIDE}x{STRIDE} at least"
      )
    trunk = VGG16(self.width, self.dtype, name="trunk")
    # Two passes: concatenating batches would move images between devices.
    pairs = zip(trunk(rescale(x)), trunk(rescale(y)), strict=True)
    distance = jnp.zeros(x.shape[0], jnp.float32)
    for stage, (fx, fy) in enumerate(pairs, start=1):
      head = nn.Conv(
        1,
        (1, 1),
        use_bias=False,
        kernel_init=nn.initializers.uniform(0.2),
        # By default accelerators round float32 operands to 8 or 11 bits.
        precision=jax.lax.Precision.HIGHEST,
        name=f"head{stage}",
      )
      squares = (unit_normalise(fx) - unit_normalise(fy)) ** 2
      distance += head(squares).mean((1, 2, 3))
    return distance


def rescale(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
  """Images in [-1, 1] with the mean and deviation that VGG16 expects."""
  return (images.astype(jnp.float32) - jnp.array(SHIFT)) / jnp.array(SCALE)


def unit_normalise(
  features: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
  """f / |f| over channels, in float32.

  The reference divides by |f| + 1e-10, whose gradient is not a number where f
  is zero. With 1e-10 under the root the values agree and the gradient is
  finite.
  """
  features = features.astype(jnp.float32)
  squared = (features**2).sum(-1, keepdims=True)
  return features / jnp.sqrt(squared + 1e-10**2)
