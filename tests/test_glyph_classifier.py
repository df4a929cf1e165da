"""The classifier reads every image of the data set, and no other is valid."""

import numpy as np
import pytest

from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.evaluation.glyphs.glyph_classifier import (
  MAX_VALID_RESIDUAL,
  GlyphReading,
  attribute_accuracy,
  read_glyphs,
)

SPLITS = ("train", "validation", "held_out")


def stacked(split, count, seed=0):
  samples = list(Glyphs(split=split, size=count, seed=seed))
  names = ("image", "attributes", "segmap")
  return (np.stack([s[name] for s in samples]) for name in names)


def add_noise(images, sigma, seed=0):
  noise = np.random.default_rng(seed).normal(0, sigma, images.shape)
  return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("split", SPLITS)
def test_every_image_of_the_data_set_is_read_exactly(split):
  images, attributes, segmap = stacked(split, 400, seed=11)
  reading = read_glyphs(images)
  np.testing.assert_array_equal(reading.attributes, attributes)
  np.testing.assert_array_equal(reading.segmap, segmap)
  np.testing.assert_array_equal(reading.residual, 0)
  assert set(attribute_accuracy(reading, attributes).values()) == {1.0}


@pytest.mark.parametrize("sigma", [8, 16])
def test_noise_does_not_change_the_reading_and_is_measured(sigma):
  images, attributes, _ = stacked("train", 400)
  # Grey is the one background where no noise is clipped away.
  reading = read_glyphs(add_noise(images, sigma))
  assert attribute_accuracy(reading, attributes)["all"] >= 0.99
  grey = reading.residual[attributes[:, 5] == 2]
  np.testing.assert_allclose(grey, sigma, rtol=0.1)


def test_accuracy_of_shuffled_captions_is_chance():
  images, attributes, _ = stacked("train", 700)
  wrong = np.random.default_rng(0).permutation(attributes)
  scores = attribute_accuracy(read_glyphs(images), wrong)
  chances = {"background": 1 / 4, "size": 1 / 2, "position": 1 / 9}
  chances |= {"texture": 1 / 3, "colour": 1 / 8, "shape": 1 / 6}
  for name, chance in chances.items():
    assert abs(scores[name] - chance) < 0.05, name
  assert scores["all"] < 0.01


def test_noise_blanks_and_most_blends_are_not_valid():
  rng = np.random.default_rng(0)
  white = rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
  assert read_glyphs(white).residual.min() > 5 * MAX_VALID_RESIDUAL
  ground = np.array([(0,) * 3, (255,) * 3, (128,) * 3, (210, 180, 140)])
  blank = np.broadcast_to(ground[:, None, None], (4, 32, 32, 3))
  assert np.isinf(read_glyphs(blank.astype(np.uint8)).residual).all()
  images, _, _ = stacked("train", 400)
  blends = (images[::2].astype(int) + images[1::2]) // 2
  residual = read_glyphs(blends.astype(np.uint8)).residual
  assert (residual < MAX_VALID_RESIDUAL).mean() < 0.05


def test_a_reading_does_not_depend_on_the_batch():
  images, _, _ = stacked("train", 35)
  noisy = add_noise(images, 30)
  together = read_glyphs(noisy)
  single = [read_glyphs(noisy[i : i + 1]) for i in range(len(noisy))]
  for whole, parts in zip(together, zip(*single, strict=True), strict=True):
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_one_wrong_attribute_lowers_its_accuracy_and_all():
  images, attributes, _ = stacked("train", 4)
  attributes[0, 2] += 1
  scores = attribute_accuracy(read_glyphs(images), attributes)
  assert scores.pop("texture") == scores.pop("all") == 0.75
  assert set(scores.values()) == {1.0}


@pytest.mark.parametrize(
  "shape, dtype",
  [
    ((2, 48, 48, 3), np.uint8),
    ((2, 32, 32, 1), np.uint8),
    ((0, 32, 32, 3), np.uint8),
    ((2, 32, 32, 3), np.float32),
  ],
)
def test_other_shapes_and_types_are_refused(shape, dtype):
  with pytest.raises(ValueError, match="only Glyphs level 0 is supported"):
    read_glyphs(np.zeros(shape, dtype))


def test_attributes_of_another_number_of_images_are_refused():
  images, attributes, _ = stacked("train", 3)
  reading = read_glyphs(images)
  assert isinstance(reading, GlyphReading)
  with pytest.raises(ValueError, match="one row of six"):
    attribute_accuracy(reading, attributes[:2])
