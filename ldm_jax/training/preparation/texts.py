"""Captions through frozen text encoders, once: their outputs in files."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ldm_jax import config_json
from ldm_jax.config import Experiment
from ldm_jax.errors import ConfigError
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedded_text import embed, embedded_name
from ldm_jax.nn.conditioners.embedders import TextEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.runtime.checkpointing.checksums import checksum
from ldm_jax.runtime.devices.sharding import MeshShape, Sharding
from ldm_jax.training.checks import conditioners_of
from ldm_jax.training.dataloading import caption_tokenizer
from ldm_jax.training.frozen import frozen_conditioners

Arrays = dict[str, np.ndarray]
# What of a conditioner does not change its output.
_FREE = ("drop_rate", "is_frozen", "is_scanned", "remat", "attention_backend")


class TextCache(NamedTuple):
  """The outputs of a model's frozen text conditioners.

  Attributes:
    encode: captions [b] to arrays [b ...], by `embedded_name`.
    identity: by input_key what the outputs depend on, as JSON.
  """

  encode: Callable[[Sequence[str]], Arrays]
  identity: dict[str, Any]


def text_cache(
  experiment: Experiment, sharding: Sharding, dtype: str, trust: Sequence[str]
) -> TextCache:
  """The outputs for captions in `dtype`, by the experiment's text encoders.

  Raises:
    ConfigError: the experiment has no frozen text conditioner, one that is
      trained, or no tokenizer.
    WeightsError: its text encoders cannot be read.
  """
  parts = _text_conditioners(experiment)
  start = None
  if experiment.start:
    start = open_model(experiment.start, LoadOptions(trust=tuple(trust)))
  variables = frozen_conditioners(experiment, start)
  tokenizer = caption_tokenizer(experiment, start)
  if tokenizer is None:
    raise ConfigError(
      "texts are encoded by a tokenizer; set data.tokenizer, and "
      "data.t5_tokenizer for a T5Embedder"
    )
  if jax.process_count() > 1:
    # Each process encodes different captions, on a device of its own.
    sharding = MeshShape().build(jax.local_devices()[:1])
  kept = {part.input_key: variables[part.input_key] for part in parts}
  kept = jax.device_put(kept, sharding.tree_shardings(kept))
  encoders = {
    part.input_key: jax.jit(functools.partial(embed, part)) for part in parts
  }

  def encode(captions: Sequence[str]) -> Arrays:
    """The outputs of every text conditioner, by name and part."""
    ids, drop = tokenizer.arrays(captions), np.zeros(len(captions), bool)
    found = {}
    for name, run in encoders.items():
      rows = run(
        kept[name],
        jax.device_put(_ids(ids, name), sharding.batch),
        jax.device_put(drop, sharding.batch),
      )
      found |= {
        embedded_name(name, part): np.asarray(array).astype(dtype)
        for part, array in rows.items()
      }
    return found

  identity = {
    part.input_key: conditioner_identity(part, kept[part.input_key])
    for part in parts
  }
  return TextCache(encode, identity)


def _ids(ids: Mapping[str, np.ndarray], name: str) -> np.ndarray:
  if name in ids:
    return ids[name]
  raise ConfigError(
    f"a text conditioner reads {name!r}, and captions become "
    f"{', '.join(ids)}; set data.t5_tokenizer for a T5Embedder"
  )


def _text_conditioners(
  experiment: Experiment,
) -> list[ClipEmbedder | T5Embedder]:
  """The conditioners whose outputs are cached.

  Raises:
    ConfigError: there are none, or a text conditioner is trained.
  """
  kinds = ClipEmbedder | T5Embedder | TextEmbedder
  parts = [c for c in conditioners_of(experiment.task) if isinstance(c, kinds)]
  trained = [part.input_key for part in parts if not part.is_frozen]
  if trained:
    raise ConfigError(
      f"the text conditioner of {trained[0]!r} is trained with the backbone, "
      "so its outputs change; leave texts out (--texts), or freeze it "
      "(is_frozen=True)"
    )
  if not parts:
    raise ConfigError(
      "the config's model has no frozen text conditioner (ClipEmbedder, "
      "T5Embedder); leave texts out (--texts)"
    )
  return parts


def conditioner_identity(
  part: ClipEmbedder | T5Embedder, variables: Any
) -> dict[str, Any]:
  """What a conditioner's outputs depend on, as JSON will restore it."""
  return {
    "conditioner": conditioner_json(part),
    "parameters": checksum(variables),
  }


def conditioner_json(part: ClipEmbedder | T5Embedder) -> Any:
  """What of a conditioner changes its output, as JSON will restore it."""
  return _bare(json.loads(json.dumps(config_json.to_json(part))))


def _bare(node: Any) -> Any:
  """The JSON of a config without what changes no output."""
  if isinstance(node, list):
    return [_bare(each) for each in node]
  if not isinstance(node, dict):
    return node
  return {key: _bare(each) for key, each in node.items() if key not in _FREE}
