"""What the tensors of a DiT hold besides the network: labels and copies.

Released DiTs have the table of labels inside. In diffusers every block has its
own copy of that table and of the time's embedding, which are one network's.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.nn.dit.positions import sincos_positions
from ldm_jax.pretrained.dit.dit_config import labels_config
from ldm_jax.pretrained.networks import ForeignNetwork
from ldm_jax.pretrained.single_file.renamed_tensors import Renamed

Tensors = Mapping[str, Any]

LABELS = "class_embedder"  # the component's name
_EMBEDDINGS = "transformer_blocks.{}.norm1.emb."
_FIRST = _EMBEDDINGS.format(0)
_TABLES = {
  "diffusers": f"{_FIRST}class_embedder.embedding_table.weight",
  "compvis": "y_embedder.embedding_table.weight",
}


def with_labels(
  networks: Mapping[str, ForeignNetwork],
) -> dict[str, ForeignNetwork]:
  """The networks, a DiT's table of labels as one of its own.

  Raises:
    ConfigError: the DiT's config is not supported.
    WeightsError: it has no table.
  """
  unet = networks.get("unet")
  if unet is None or unet.kind != "dit":
    return dict(networks)
  name = _TABLES[unet.scheme]
  if name not in unet.tensors:
    raise WeightsError(
      f"{unet.path}: {name} is missing: a DiT without a table of labels is "
      "not read"
    )
  table = dataclasses.replace(
    unet,
    config=labels_config(unet.config),
    tensors=Renamed(unet.tensors, {name: name}),
    kind="dit_labels",
  )
  return {**networks, LABELS: table}


def check_copies(network: ForeignNetwork) -> None:
  """Raises WeightsError for a DiT's copies that differ, or other positions."""
  if network.kind != "dit":
    return
  tensors = network.tensors
  if network.scheme == "compvis":
    if (found := tensors.get("pos_embed")) is not None:
      _check_positions(network.path, np.asarray(found, np.float32))
    return
  for first, copy in _copies(tensors, network.config["num_layers"]):
    if copy in tensors and not np.array_equal(tensors[first], tensors[copy]):
      raise WeightsError(
        f"{network.path}: {copy} differs from {first}; a DiT has one embedding "
        "of time and class, and all blocks' are copies of it"
      )


def _copies(names: Iterable[str], depth: int) -> Iterator[tuple[str, str]]:
  """(name in the first block, name in another) of every copied tensor."""
  for name in names:
    if name.startswith(_FIRST):
      rest = name.removeprefix(_FIRST)
      for i in range(1, depth):
        yield name, _EMBEDDINGS.format(i) + rest


def _check_positions(path: str, found: np.ndarray) -> None:
  own = np.zeros((0, 0), np.float32)
  if found.ndim == 3 and len(found) == 1:
    side = round(found.shape[1] ** 0.5)
    own = np.asarray(sincos_positions((side, side), found.shape[2], None))
  if found.shape[1:] != own.shape or np.abs(found[0] - own).max() > 1e-3:
    raise WeightsError(
      f"{path}: pos_embed {found.shape} is not the table of sines and cosines "
      "that DiT and SiT keep fixed; learned positions are not read"
    )


def with_copies(tensors: Tensors, depth: int) -> dict[str, Any]:
  """A network's tensors with diffusers' copies of the first block's."""
  copies = {copy: tensors[first] for first, copy in _copies(tensors, depth)}
  return {**tensors, **copies}
