"""The scale and shift of published autoencoders that come without a config."""

from typing import NamedTuple

from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.bottleneck import VectorQuantizer
from ldm_jax.nn.latent_normalization import (
  BatchStatistics,
  LatentNormalization,
)
from ldm_jax.pretrained.configs.defaults import SCALING_FACTOR

# scaling_factor and shift_factor of the vae/config.json of SD 3 and FLUX.1, by
# the kinds of their transformers.
TRANSFORMER_LATENTS = {
  "mmdit": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
  "flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
}


class _Published(NamedTuple):
  """What is taken for an autoencoder, and a warning where others differ."""

  scale: float
  shift: float = 0.0
  warning: str = ""


# scaling_factor and shift_factor of the vae/config.json of SD 1.5, SDXL, SD 3
# and FLUX.1.
_SD = _Published(
  SCALING_FACTOR,
  warning="the autoencoder does not say what its latents are multiplied by; it "
  f"is taken to be {SCALING_FACTOR} (SDXL's is 0.13025)",
)
_FLUX = _Published(
  0.3611,
  0.1159,
  "the autoencoder does not say its scaling_factor and shift_factor; they are "
  "taken to be FLUX.1's, 0.3611 and 0.1159 (SD 3's are 1.5305 and 0.0609)",
)
_VQ = _Published(
  1.0,
  warning="the autoencoder does not say what its latents are multiplied by; it "
  "is taken to be 1.0",
)


def published_statistics(
  module: Autoencoder,
) -> tuple[Autoencoder, float, str]:
  """The module with its `normalization`, the scale of its latents, a warning.

  By its channels and quant convolutions, as published models differ. The
  warning says what was guessed; "" if there is nothing to guess.
  """
  if isinstance(module.normalization, BatchStatistics):
    return module, 1.0, ""
  if isinstance(module.bottleneck, VectorQuantizer):
    return module, _VQ.scale, _VQ.warning
  is_flux = module.latent_channels == 16 and not module.has_quant_conv
  found = _FLUX if is_flux else _SD
  if found.shift:
    normalization = LatentNormalization((found.shift,))
    module = module.clone(normalization=normalization)
  return module, found.scale, found.warning
