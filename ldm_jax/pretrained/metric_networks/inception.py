"""FID's Inception from the file that FID implementations share."""

import os
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.weights.files import read_torch
from ldm_jax.weights.naming.convert import convert, read_table

FILE = "weights-inception-2015-12-05-6726825d.pth"

# What to look for, since nothing is downloaded.
SOURCE = (
  f"torch-fidelity's {FILE} (96 MB, the SHA-256 begins with 6726825d), or "
  "pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
)


def inception(path: str) -> dict[str, Any]:
  """The variables of `nn.encoders.inception.Inception`, as numpy arrays.

  Raises:
    ConfigError: there is no such file.
    WeightsError: it is unreadable, refused, or holds other tensors.
  """
  if not os.path.isfile(path):
    raise ConfigError(f"there is no file {path!r}; expected {SOURCE}")
  return convert(read_table("inception"), read_torch(path))
