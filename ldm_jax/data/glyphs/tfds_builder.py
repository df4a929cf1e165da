"""Glyphs as a tensorflow-datasets builder for ArrayRecord, without TensorFlow.

  Glyphworld(config="level_0", data_dir=folder, file_format="array_record")

and `download_and_prepare()` once; then `tfds.data_source("glyphworld/level_0",
split="train", data_dir=folder, download=False)`. The default file format,
TFRECORD, would need TensorFlow and has no random access.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from ldm_jax.data.glyphs.scenes import COLOURS, LEVELS, SHAPES
from ldm_jax.data.glyphs.source import Glyphs


@dataclasses.dataclass(eq=False, kw_only=True)
class GlyphworldConfig(tfds.core.BuilderConfig):
  """The level and seed of `Glyphs`, and the samples of each split."""

  level: int = 0
  seed: int = 0
  train: int = 50_000
  validation: int = 5_000
  held_out: int = 5_000


class Glyphworld(tfds.core.GeneratorBasedBuilder):
  """Procedural coloured shapes with captions, maps and boxes."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [  # noqa: RUF012 (tfds wants a list here)
    GlyphworldConfig(name="level_0", description="32 px, one object", level=0),
    GlyphworldConfig(
      name="level_1", description="64 px, one to three objects", level=1
    ),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    level = self.builder_config.level
    rules = LEVELS[level]
    s, objects = rules.pixels, rules.objects
    shapes = list(SHAPES)[: rules.shapes]
    features = {
      "image": tfds.features.Image(shape=(s, s, 3), encoding_format="png"),
      "caption": tfds.features.Text(),
      "label": tfds.features.ClassLabel(
        names=[f"{colour} {shape}" for shape in shapes for colour in COLOURS]
      ),
      "segmap": tfds.features.Tensor(shape=(s, s), dtype=np.uint8),
      "boxes": tfds.features.Tensor(shape=(objects, 5), dtype=np.float32),
      "attributes": tfds.features.Tensor(
        shape=(6,) if level == 0 else (objects, 6), dtype=np.int32
      ),
    }
    if level > 0:
      features["number"] = tfds.features.Scalar(dtype=np.int32)
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features),
      supervised_keys=("image", "label"),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    del dl_manager  # nothing is downloaded
    config = self.builder_config
    sizes = {
      "train": config.train,
      "validation": config.validation,
      "held_out": config.held_out,
    }
    return {
      split: self._generate_examples(
        Glyphs(config.level, split, size, config.seed)
      )
      for split, size in sizes.items()
    }

  def _generate_examples(
    self, source: Glyphs
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for i in range(len(source)):
      sample = source[i]
      # tfds 4.9 encodes a Pillow image itself, an array by TensorFlow.
      yield i, sample | {"image": PIL.Image.fromarray(sample["image"])}
