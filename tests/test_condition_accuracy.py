"""Condition metrics on images whose conditions are known."""

import numpy as np
import pytest

from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.transforms.degradation import area
from ldm_jax.data.transforms.masks import Masks
from ldm_jax.evaluation.glyphs import condition_accuracy
from ldm_jax.evaluation.glyphs.glyph_classifier import read_glyphs

COUNT = 48


def stacked(**fields):
  source = Glyphs(split="validation", size=COUNT, **fields)
  items = [source[i] for i in range(COUNT)]
  return {
    name: np.stack([item[name] for item in items])
    for name in ("image", "label", "segmap", "boxes", "attributes")
  }


TRUE = stacked()
READING = read_glyphs(TRUE["image"])
ROLLED = read_glyphs(np.roll(TRUE["image"], 1, axis=0))


def test_real_images_match_their_conditions():
  assert condition_accuracy.valid_fraction(READING) == {"valid_fraction": 1.0}
  assert condition_accuracy.class_accuracy(READING, TRUE["label"]) == {
    "class_accuracy": 1.0,
    "shape_accuracy": 1.0,
    "colour_accuracy": 1.0,
  }
  assert condition_accuracy.mean_iou(READING.segmap, TRUE["segmap"], 7) == {
    "mean_iou": 1.0
  }
  assert (
    condition_accuracy.box_iou(READING.segmap, TRUE["boxes"])["layout_iou"]
    > 0.999
  )


def test_other_images_do_not_match_the_conditions():
  assert (
    condition_accuracy.class_accuracy(ROLLED, TRUE["label"])["class_accuracy"]
    < 0.2
  )
  assert (
    condition_accuracy.mean_iou(ROLLED.segmap, TRUE["segmap"], 7)["mean_iou"]
    < 0.4
  )
  assert (
    condition_accuracy.box_iou(ROLLED.segmap, TRUE["boxes"])["layout_iou"] < 0.4
  )
  noise = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3))
  assert (
    condition_accuracy.valid_fraction(read_glyphs(noise.astype(np.uint8)))[
      "valid_fraction"
    ]
    == 0.0
  )


def test_colours_are_read_by_palette():
  soft = stacked(palette="soft")
  found = read_glyphs(soft["image"], palette=1)
  np.testing.assert_array_equal(found.attributes, soft["attributes"])
  wrong = read_glyphs(soft["image"])
  assert (wrong.attributes[:, 1] != soft["attributes"][:, 1]).any()
  assert (wrong.residual > found.residual).all()


def test_mean_iou_is_a_mean_over_classes():
  target = np.array([[[0, 0], [1, 1]]])
  found = np.array([[[0, 1], [1, 1]]])
  # Background 1/2, class 1 2/3; class 2 is not in the target.
  iou = condition_accuracy.mean_iou(found, target, 3)["mean_iou"]
  assert iou == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_box_iou_of_a_shift_by_half():
  segmap = np.zeros((1, 8, 8), int)
  segmap[0, 0:4, 2:6] = 1
  boxes = np.array([[[0.0, 0.0, 0.5, 0.5, 0]]])  # columns 0 to 4
  found = condition_accuracy.box_iou(segmap, boxes)["layout_iou"]
  assert found == pytest.approx(8 / 24)
  assert condition_accuracy.box_iou(0 * segmap, boxes)["layout_iou"] == 0


def test_inpainting_counts_changed_pixels_and_inconsistent_images():
  masks = np.stack(
    [
      Masks(("box",))({"image": image}, np.random.default_rng(i))
      for i, image in enumerate(TRUE["image"])
    ]
  )
  metrics = condition_accuracy.inpainting_accuracy(
    TRUE["image"], TRUE["image"], masks, READING
  )
  assert metrics == {"changed_outside": 0, "consistent": 1.0}
  other = np.roll(TRUE["image"], 1, axis=0)
  mixed = np.where(masks[..., None], other, TRUE["image"])
  metrics = condition_accuracy.inpainting_accuracy(
    mixed, TRUE["image"], masks, read_glyphs(mixed)
  )
  assert metrics["changed_outside"] == 0 and metrics["consistent"] < 0.3
  changed = TRUE["image"].copy()
  changed[0][~masks[0]] ^= 1
  metrics = condition_accuracy.inpainting_accuracy(
    changed, TRUE["image"], masks, READING
  )
  assert metrics["changed_outside"] == (~masks[0]).sum()


def test_super_resolution_is_measured_at_both_resolutions():
  small = np.stack([area(image, 4) for image in TRUE["image"]])
  metrics = condition_accuracy.upscaling_psnr(
    TRUE["image"], TRUE["image"], small
  )
  assert metrics["psnr_sr"] == 100 and 15 < metrics["psnr_bicubic"] < 35
  assert metrics["consistency"] > 50
  other = np.roll(TRUE["image"], 1, axis=0)
  assert (
    condition_accuracy.upscaling_psnr(other, TRUE["image"], small)[
      "consistency"
    ]
    < 20
  )


def test_agreement_with_neighbours_exceeds_chance():
  metrics = condition_accuracy.neighbour_agreement(READING, [ROLLED, READING])
  assert metrics["agreement"] == 1.0
  assert metrics["agreement_chance"] < 0.15
  none = condition_accuracy.neighbour_agreement(READING, [ROLLED])["agreement"]
  assert none < 0.2


def test_diversity_is_0_for_a_constant_and_1_for_a_uniform_distribution():
  same = READING._replace(
    attributes=np.repeat(READING.attributes[:1], COUNT, 0)
  )
  assert condition_accuracy.diversity(same)["diversity"] == 0
  many = np.zeros((54, 6), np.int32)
  many[:, 2] = np.arange(54) % 3
  many[:, 3] = np.arange(54) // 3 % 2
  many[:, 4] = np.arange(54) // 6
  even = condition_accuracy.diversity(READING._replace(attributes=many))
  assert even["diversity"] == pytest.approx(1.0)
