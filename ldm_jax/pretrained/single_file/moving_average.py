"""The moving average of a U-Net in CompVis's checkpoints."""

from collections.abc import Mapping

import numpy as np

from ldm_jax.errors import WeightsError

_EMA = "model_ema."
_UNET = "model.diffusion_model."


def averaged(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
  """The tensors with the U-Net's moving average in place of its parameters.

  The name of an average is its parameter's without the dots.

  Raises:
    WeightsError: the file has no average.
  """
  flat = {
    _EMA + name.removeprefix("model.").replace(".", ""): name
    for name in tensors
    if name.startswith(_UNET)
  }
  found = {flat[name]: tensors[name] for name in tensors if name in flat}
  if not found or len(found) < len(flat):
    raise WeightsError(
      f"the file has {len(found)} averages for {len(flat)} parameters of its "
      "U-Net; load it as it is"
    )
  return {**{name: tensors[name] for name in tensors}, **found}
