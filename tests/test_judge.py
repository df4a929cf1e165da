"""The judge is right about every true image, and believes nothing else."""

import numpy as np
import pytest

from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.evaluation.glyphs.glyph_classifier import (
  LEGAL,
  GlyphReading,
  read_glyphs,
  score,
)

SPLITS = ("train", "validation", "held_out")


def gather(split, count, seed=0):
  samples = list(Glyphs(split=split, size=count, seed=seed))
  names = ("image", "attributes", "segmap")
  return (np.stack([s[name] for s in samples]) for name in names)


def add_noise(images, sigma, seed=0):
  noise = np.random.default_rng(seed).normal(0, sigma, images.shape)
  return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("split", SPLITS)
def test_every_true_image_is_read_exactly(split):
  images, attributes, segmap = gather(split, 1200, seed=11)
  verdict = read_glyphs(images)
  np.testing.assert_array_equal(verdict.attributes, attributes)
  np.testing.assert_array_equal(verdict.segmap, segmap)
  np.testing.assert_array_equal(verdict.residual, 0)
  assert set(score(verdict, attributes).values()) == {1.0}


@pytest.mark.parametrize("sigma", [8, 16])
def test_noise_is_looked_through_and_measured(sigma):
  images, attributes, _ = gather("train", 400)
  # Grey is the one background where no noise is clipped away.
  verdict = read_glyphs(add_noise(images, sigma))
  assert score(verdict, attributes)["all"] >= 0.99
  grey = verdict.residual[attributes[:, 5] == 2]
  np.testing.assert_allclose(grey, sigma, rtol=0.1)


def test_shuffled_captions_score_as_chance():
  images, attributes, _ = gather("train", 1500)
  wrong = np.random.default_rng(0).permutation(attributes)
  scores = score(read_glyphs(images), wrong)
  chances = {"background": 1 / 4, "size": 1 / 2, "position": 1 / 9}
  chances |= {"texture": 1 / 3, "colour": 1 / 8, "shape": 1 / 6}
  for name, chance in chances.items():
    assert abs(scores[name] - chance) < 0.05, name
  assert scores["all"] < 0.01


def test_no_noise_no_blank_and_hardly_a_blend_is_legal():
  rng = np.random.default_rng(0)
  white = rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
  assert read_glyphs(white).residual.min() > 5 * LEGAL
  ground = np.array([(0,) * 3, (255,) * 3, (128,) * 3, (210, 180, 140)])
  blank = np.broadcast_to(ground[:, None, None], (4, 32, 32, 3))
  assert np.isinf(read_glyphs(blank.astype(np.uint8)).residual).all()
  images, _, _ = gather("train", 400)
  blends = (images[::2].astype(int) + images[1::2]) // 2
  assert (read_glyphs(blends.astype(np.uint8)).residual < LEGAL).mean() < 0.05


def test_a_verdict_does_not_depend_on_the_batch():
  images, _, _ = gather("train", 35)
  noisy = add_noise(images, 30)
  together = read_glyphs(noisy)
  alone = [read_glyphs(noisy[i : i + 1]) for i in range(len(noisy))]
  for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_one_wrong_attribute_costs_itself_and_all():
  images, attributes, _ = gather("train", 4)
  attributes[0, 2] += 1
  scores = score(read_glyphs(images), attributes)
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
def test_only_level_zero_pixels_are_judged(shape, dtype):
  with pytest.raises(ValueError, match="only Glyphs level 0 is judged"):
    read_glyphs(np.zeros(shape, dtype))


def test_attributes_of_other_images_are_refused():
  images, attributes, _ = gather("train", 3)
  verdict = read_glyphs(images)
  assert isinstance(verdict, GlyphReading)
  with pytest.raises(ValueError, match="one row of six"):
    score(verdict, attributes[:2])
