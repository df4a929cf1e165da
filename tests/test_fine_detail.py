"""Numbers, gratings and textures are preserved, and blur removes them."""

import numpy as np
import pytest

from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.evaluation.glyphs.fine_detail import (
  grating_contrast,
  numbers_read,
  texture_kept,
)

SOURCE = Glyphs(1, "validation", 60)
ALL = (numbers_read, grating_contrast, texture_kept)


@pytest.fixture(scope="module")
def examples():
  images = np.stack([each["image"] for each in SOURCE])
  return images, [SOURCE.scene(i) for i in range(len(SOURCE))]


def blurred(images, factor):
  """Means over factor x factor pixels, at the same size."""
  n, side = len(images), 64 // factor
  small = images.reshape(n, side, factor, side, factor, 3).mean((2, 4))
  return small.repeat(factor, 1).repeat(factor, 2).round().astype(np.uint8)


def test_originals_score_1(examples):
  assert [measure(*examples) for measure in ALL] == pytest.approx([1, 1, 1])


def test_a_scene_has_its_examples_number(examples):
  for sample, scene in zip(SOURCE, examples[1], strict=True):
    assert sample["number"] == scene.number


def test_another_number_is_not_read(examples):
  images, scenes = examples
  wrong = [s._replace(number=10 + (s.number + 7) % 90) for s in scenes]
  assert numbers_read(images, wrong) == 0


@pytest.mark.slow
def test_blur_removes_the_finest_detail_first(examples):
  images, scenes = examples
  half, quarter = blurred(images, 2), blurred(images, 4)
  assert abs(grating_contrast(half, scenes)) < 0.1
  assert numbers_read(images, scenes) > numbers_read(half, scenes)
  assert numbers_read(half, scenes) > numbers_read(quarter, scenes)
  assert numbers_read(quarter, scenes) < 0.3
  assert 0.9 > texture_kept(half, scenes) > texture_kept(quarter, scenes)


def test_half_the_contrast_measures_half(examples):
  images, scenes = examples
  pale = (images // 2 + 64).astype(np.uint8)
  assert grating_contrast(pale, scenes) == pytest.approx(0.5, abs=0.02)
  assert texture_kept(pale, scenes) == pytest.approx(1, abs=0.01)
