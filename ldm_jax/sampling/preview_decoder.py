"""Previews by a small autoencoder of the model's latents."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.first_stage import FirstStage
from ldm_jax.nn.latent_normalization import denormalize
from ldm_jax.nn.operators.choice import operators_of
from ldm_jax.pixels import to_uint8
from ldm_jax.pretrained.open_autoencoder import open_autoencoder
from ldm_jax.runtime.stored_programs import StoredProgram


class PreviewDecoder:
  """Decodes x0 to images of full size while it is denoised.

    decoder = PreviewDecoder.open("runs/tiny")
    pipe("a red fox", callback=show, preview=decoder)

  Any first stage that has the model's latents, such as TAESD or the run of a
  `DistillationTask`.

  Attributes:
    path: of the autoencoder, for errors.
  """

  def __init__(
    self,
    stage: FirstStage,
    variables: Any,
    latent_scale: float = 1.0,
    path: str = "",
  ):
    """Compiles nothing yet.

    Args:
      latent_scale: of the stage's latents; 1 of a TinyAutoencoder.
    """
    self.path, self._stage, self._variables = path, stage, variables
    self._scale = np.float32(latent_scale)

    def decode(variables: Any, latents: Array, scale: Array) -> Array:
      unscaled = denormalize(stage, jnp.nan_to_num(latents) / scale)
      return to_uint8(stage.apply(variables, unscaled, method="decode"))

    parts = "preview decoder", stage
    self._decode = StoredProgram(jax.jit(decode), parts, operators_of(*parts))

  @classmethod
  def open(cls, path: str, trust: Collection[str] = ()) -> "PreviewDecoder":
    """Of a run, a folder, a single file, or owner/model of the hub.

    Args:
      trust: see `Run.open`.

    Raises:
      ConfigError: it has no autoencoder, or does not know its scale.
      WeightsError: its weights cannot be used.
    """
    stage, variables, scale = open_autoencoder(path, trust)
    if scale is None:
      raise ConfigError(
        f"the run {path!r} of an autoencoder does not store the scale of its "
        "latents; give a distilled one, or what ldm-jax convert writes of it "
        "(--preview_decoder)"
      )
    return cls(stage, variables, scale, path)

  def check(self, model: LatentDiffusion) -> None:
    """Raises ConfigError if the model's latents are of another shape."""
    own = self._stage.latent_channels, self._stage.stride
    stage = model.first_stage
    needed = stage.latent_channels, stage.stride
    if own != needed:
      raise ConfigError(
        f"the preview decoder {self.path!r} reads latents of {own[0]} channels "
        f"and stride {own[1]}, the model has {needed[0]} channels and stride "
        f"{needed[1]}; distil one from this model, or leave it out "
        "(--preview_decoder)"
      )

  def images(
    self, latents: Float[np.ndarray, "b h w c"]
  ) -> UInt8[np.ndarray, "b H W 3"]:
    """The images of scaled latents."""
    return np.asarray(self._decode(self._variables, latents, self._scale))
