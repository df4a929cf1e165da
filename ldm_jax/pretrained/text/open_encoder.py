"""Opens a text encoder by its folder, or by a file that holds nothing else."""

import os

from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.components import open_file, open_network
from ldm_jax.pretrained.hub.fetch import local_path
from ldm_jax.pretrained.networks import ForeignNetwork


def open_encoder(path: str) -> ForeignNetwork:
  """The network of a folder or repository, or the only one of a single file.

  Raises:
    ConfigError: the file holds several networks, or the folder an unknown one.
    WeightsError: the weights are missing or malformed.
  """
  if not os.path.isfile(path):
    return open_network(local_path(path))
  found = open_file(path)
  if found.single is None:
    raise ConfigError(
      f"text_encoder {path!r} holds {', '.join(found.networks)}; give a file "
      "with a text encoder alone (--text_encoder)"
    )
  return found.single
