"""Latents that resemble the features of a frozen image encoder."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax import config_json
from ldm_jax.errors import ConfigError
from ldm_jax.fields.limits import NonNegative, check_limits
from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.pretrained.metric_networks.dinov2 import SOURCE, open_dinov2
from ldm_jax.training.first_stage.regularizers import Batch, RegularizerInputs

RANDOM = "random"
EPSILON = 1e-12  # of squared norms


@dataclasses.dataclass(frozen=True)
class FeatureAlignment:
  """VA-VAE's loss on latents and DINOv2's features  (Yao et al. 2025).

    mean_i relu(1 - m1 - cos(z_i, f_i))
      + mean_ij relu(|cos(z_i, z_j) - cos(f_i, f_j)| - m2)

  z_i = W latents_i at position i, with a learned W without bias, f_i the
  encoder's feature of the patch there; i and j are positions of one image. The
  latents are sampled from their posterior, and both terms are of z, as in the
  authors' code. Images are resized, with antialiasing, so that an image has as
  many patches as latents: f16's 256 pixels to 224, as in the paper.

  The weight is `weight` |dnll/dW| / (|dloss/dW| + 1e-4), clipped to [0, 1e8],
  with W the encoder's last kernel. Only the encoder and the projection have
  gradients.

  Attributes:
    weight: the paper's w_hyper.
    is_adaptive: multiply it by the ratio of gradients.
    path: a folder of transformers' Dinov2Model, its authors' file, or "random":
      features of a network that was never trained, which say nothing about what
      is seen.
    encoder: of `path`; the default is ViT-L/14's.
    cosine_margin: m1.
    distance_margin: m2.
  """

  weight: NonNegative = 0.1
  is_adaptive: bool = True
  path: str = ""
  encoder: DinoV2 = DinoV2()
  cosine_margin: NonNegative = 0.5
  distance_margin: NonNegative = 0.25

  def __post_init__(self):
    check_limits(self)

  def init(self, key: Array, task: Any, batch: Batch) -> dict[str, Any]:
    """The projection, initialised as PyTorch's Conv2d."""
    *_, channels = task.autoencoder.latent_shape(*batch["image"].shape[1:3])
    shape, bound = (channels, self.encoder.width), channels**-0.5
    kernel = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
    return {"projection": {"kernel": kernel}}

  def frozen_shapes(self, batch: Batch) -> Any:
    """Shapes of the encoder's variables."""
    del batch
    size = self.encoder.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(self.encoder.init, jax.random.key(0), image)

  def load_frozen(self) -> Any:
    """The encoder's variables.

    Raises:
      ConfigError: there is no such file, or it is of another encoder.
      WeightsError: it is malformed.
    """
    if self.path == RANDOM:
      size = self.encoder.size
      init = jax.jit(self.encoder.init)
      return init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    if not self.path:
      raise ConfigError(
        f"FeatureAlignment.path is empty; give {SOURCE}. To align with random "
        f"features: path={RANDOM!r}"
      )
    found, variables = open_dinov2(self.path)
    lines = config_json.differences(
      _plain(self.encoder), _plain(found), "encoder"
    )
    if lines:
      raise ConfigError(
        f"FeatureAlignment: {self.path} is of another encoder than the "
        f"config's: {'; '.join(lines)}; set these fields to the second value"
      )
    return variables

  def loss(
    self, inputs: RegularizerInputs, own: Any, frozen: Any
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Both terms, and each as a metric."""
    latents = inputs.sampled_latents(inputs.key)
    projected = latents @ own["projection"]["kernel"]
    features = self._features(inputs.images, frozen, latents.shape[1:3])
    cosine, distance = alignment_losses(
      projected, features, self.cosine_margin, self.distance_margin
    )
    metrics = {"alignment_cosine": cosine, "alignment_distance": distance}
    return cosine + distance, metrics

  def _features(
    self, images: Float[Array, "b h w 3"], frozen: Any, grid: tuple[int, int]
  ) -> Float[Array, "b h2 w2 d"]:
    """The encoder's features of a grid of patches, taken as constants."""
    sides = (side * self.encoder.patch for side in grid)
    shape = (len(images), *sides, 3)
    resized = jax.image.resize(images, shape, "linear")
    features = self.encoder.apply(frozen, resized).patches
    return jax.lax.stop_gradient(features)


def alignment_losses(
  projected: Float[Array, "b h w d"],
  features: Float[Array, "b h w d"],
  cosine_margin: float,
  distance_margin: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """The two terms of `FeatureAlignment`'s docstring, unweighted."""
  flat = lambda x: _unit(x).reshape(len(x), -1, x.shape[-1])
  cosines = lambda x: jnp.einsum("bid,bjd->bij", x, x)
  z, f = flat(projected), flat(features)
  cosine = jax.nn.relu(1 - cosine_margin - (z * f).sum(-1)).mean()
  gap = jnp.abs(cosines(z) - cosines(f))
  return cosine, jax.nn.relu(gap - distance_margin).mean()


def _unit(x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
  """Vectors of norm 1; those of norm 0 stay 0, with a finite gradient."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + EPSILON)


def _plain(encoder: DinoV2) -> DinoV2:
  """The encoder without what may differ from its file's."""
  hidden = encoder.hidden or 4 * encoder.width
  return encoder.clone(hidden=hidden, attention_backend="auto", dtype="float32")
