"""Versions of a run's config.json.

Format 2 has the key "format". Format 1 has none; its classes and fields had
other names, which are renamed here when it is read.
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.errors import ConfigError

VERSION = 2

# Renamed from format 1 to 2.
CLASSES = {
  "Autoencoding": "AutoencoderTask",
  "Denoising": "DenoiserTask",
  "Classifying": "ClassifierTask",
  "Trunk": "ConvStack",
  "Pixels": "PixelSpace",
  "HalfUNet": "EncoderUNet",
  "MapEmbedder": "SegmentationEmbedder",
  "Embeddings": "NeighbourEmbeddings",
  "Zoo": "TfdsSource",
  "Tokenizer": "TokenizerConfig",
  "Keeping": "CheckpointPolicy",
}
# By the new name of the class; "*" stands for every class.
FIELDS = {
  "*": {
    "road": "attention_backend",
    "reads": "input_key",
  },
  "LowResolution": {"most": "max_train_level"},
  "LatentDiffusion": {"low_noise": "noise_augmentation_schedule"},
  "Augment": {"tells": "size_conditioning"},
  "Data": {"views": "transforms"},
}
# By new field, of any class: {old value: new value}.
VALUES: dict[str, dict[Any, Any]] = {"remat": {"products": "dots"}}


def upgraded(stored: Mapping[str, Any]) -> Any:
  """The experiment of a config.json, as the present version would write it.

  Raises:
    ConfigError: a later version wrote it.
    KeyError: it has no experiment.
  """
  version = stored.get("format", 1)
  if version == 1:
    return renamed(stored["experiment"])
  if version != VERSION:
    raise ConfigError(
      f"it has format {version!r}, this version of ldm_jax reads up to "
      f"{VERSION}; upgrade ldm_jax"
    )
  return stored["experiment"]


def renamed(tree: Any) -> Any:
  """A config's JSON of format 1 with the names of format 2."""
  if isinstance(tree, list):
    return [renamed(item) for item in tree]
  if not isinstance(tree, Mapping):
    return tree
  name = CLASSES.get(tree.get("class"), tree.get("class"))
  fields = FIELDS["*"] | FIELDS.get(name, {})
  found = {}
  for old, item in tree.items():
    new = fields.get(old, old)
    value = renamed(item)
    values = VALUES.get(new, {})
    found[new] = values.get(value, value) if _is_plain(value) else value
  return found | ({"class": name} if "class" in tree else {})


def _is_plain(value: Any) -> bool:
  return value is None or isinstance(value, str | int | float)
