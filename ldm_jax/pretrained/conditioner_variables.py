"""Parameters of conditioners: of the networks inside, and the other way."""

from typing import Any

from ldm_jax.nn.conditioners.conditioner import Conditioner
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import DepthMap, LowResolution, MaskedImage
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.pretrained.networks import Module

# Conditioners without parameters.
WEIGHTLESS = SizeEmbedder | MaskedImage | LowResolution | DepthMap | SourceImage


def conditioner_variables(
  conditioners: list[Conditioner], networks: dict[str, tuple[Module, Any]]
) -> dict[str, Any]:
  """Variables of the conditioners, by their keys in the batch."""
  found = {}
  for part in conditioners:
    if isinstance(part, WEIGHTLESS):
      found[part.input_key] = {}
    elif isinstance(part, ClassEmbedder):
      ((_, variables),) = networks.values()
      found[part.input_key] = variables
    elif isinstance(part, TextEmbedder):
      ((_, variables),) = networks.values()
      found[part.input_key] = {"params": {"encoder": variables["params"]}}
    elif isinstance(part, T5Embedder):
      (params,) = _params(networks, is_t5=True)
      found[part.input_key] = {"params": {"encoder": params}}
    else:
      every = _params(networks, is_t5=False)
      encoders = {f"encoders_{i}": params for i, params in enumerate(every)}
      found[part.input_key] = {"params": encoders}
  return found


def _params(
  networks: dict[str, tuple[Module, Any]], is_t5: bool
) -> list[dict[str, Any]]:
  """Parameters of T5's encoder, or of the others in their order."""
  return [
    variables["params"]
    for module, variables in networks.values()
    if isinstance(module, T5Encoder) == is_t5
  ]


def split_variables(
  conditioner: Conditioner, variables: dict[str, Any]
) -> list[tuple[Module, dict[str, Any]]]:
  """The networks within a conditioner, with their own variables."""
  if isinstance(conditioner, WEIGHTLESS):
    return []
  if isinstance(conditioner, ClassEmbedder):
    return [(conditioner, variables)]
  params = variables["params"]
  if isinstance(conditioner, TextEmbedder | T5Embedder):
    return [(conditioner.encoder, {"params": params["encoder"]})]
  return [
    (encoder, {"params": params[f"encoders_{i}"]})
    for i, encoder in enumerate(conditioner.encoders)
  ]
