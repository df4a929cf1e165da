"""Tensors of a file under other names, each read on access."""

from collections.abc import Mapping

import numpy as np


def without_prefix(
  tensors: Mapping[str, np.ndarray], prefix: str
) -> Mapping[str, np.ndarray]:
  """Tensors by their names without a prefix, which not all need to have."""
  return Renamed(tensors, {name.removeprefix(prefix): name for name in tensors})


def under_prefix(
  tensors: Mapping[str, np.ndarray], prefix: str
) -> Mapping[str, np.ndarray]:
  """The tensors whose names begin with a prefix, by the rest of the name."""
  return Renamed(
    tensors,
    {n.removeprefix(prefix): n for n in tensors if n.startswith(prefix)},
  )


class Renamed(Mapping):
  """A view of tensors under other names; each is read on access."""

  def __init__(
    self, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]
  ):
    self._tensors, self._names = tensors, names

  def __getitem__(self, name):
    return self._tensors[self._names[name]]

  def __iter__(self):
    return iter(self._names)

  def __len__(self):
    return len(self._names)
