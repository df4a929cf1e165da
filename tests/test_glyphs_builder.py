"""The tfds builder writes the samples of `Glyphs`, without TensorFlow."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.glyphs.tfds_builder import Glyphworld, GlyphworldConfig


@pytest.mark.parametrize("level", [0, 1])
def test_what_is_prepared_is_read_back_equal(level, tmp_path):
  config = GlyphworldConfig(
    name="few", level=level, seed=3, train=12, validation=5, held_out=4
  )
  builder = Glyphworld(
    config=config, data_dir=tmp_path, file_format="array_record"
  )
  builder.download_and_prepare()
  for split, size in (("train", 12), ("validation", 5), ("held_out", 4)):
    source = Glyphs(level, split, size, seed=3)
    stored = tfds.builder_from_directory(builder.data_dir).as_data_source(split)
    assert len(stored) == size
    # tfds writes in the order of a hash of the key: captions find the partner.
    expected = sorted(
      source, key=lambda s: (s["caption"], s["image"].tobytes())
    )
    read = sorted(
      stored, key=lambda s: (s["caption"].decode(), s["image"].tobytes())
    )
    for ours, theirs in zip(expected, read, strict=True):
      assert theirs.keys() == ours.keys()
      assert theirs["caption"].decode() == ours["caption"]
      for name in ours.keys() - {"caption"}:
        np.testing.assert_array_equal(theirs[name], ours[name], name)


def test_tfds_finds_the_levels_by_name(tmp_path):
  builder = tfds.builder("glyphworld/level_1", data_dir=tmp_path)
  assert builder.info.features["image"].shape == (64, 64, 3)
  assert builder.info.features["label"].int2str(11) == "green square"


def test_no_tensorflow_is_imported():
  assert "tensorflow" not in sys.modules
