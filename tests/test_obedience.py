"""The judge's numbers on images whose truth is known."""

import numpy as np
import pytest

from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.transforms.degradation import area
from ldm_jax.data.transforms.masks import Masks
from ldm_jax.evaluation.glyphs import condition_accuracy
from ldm_jax.evaluation.glyphs.glyph_classifier import read_glyphs

COUNT = 48


def gather(**fields):
  source = Glyphs(split="validation", size=COUNT, **fields)
  items = [source[i] for i in range(COUNT)]
  return {
    name: np.stack([item[name] for item in items])
    for name in ("image", "label", "segmap", "boxes", "attributes")
  }


TRUE = gather()
VERDICT = read_glyphs(TRUE["image"])
ROLLED = read_glyphs(np.roll(TRUE["image"], 1, axis=0))


def test_true_images_obey_everything():
  assert condition_accuracy.valid_fraction(VERDICT) == {"legal": 1.0}
  assert condition_accuracy.class_accuracy(VERDICT, TRUE["label"]) == {
    "class_accuracy": 1.0,
    "shape_accuracy": 1.0,
    "colour_accuracy": 1.0,
  }
  assert condition_accuracy.mean_iou(VERDICT.segmap, TRUE["segmap"], 7) == {
    "mean_iou": 1.0
  }
  assert (
    condition_accuracy.box_iou(VERDICT.segmap, TRUE["boxes"])["layout_iou"]
    > 0.999
  )


def test_the_images_of_others_do_not():
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
      "legal"
    ]
    == 0.0
  )


def test_the_palette_decides_what_a_colour_is():
  soft = gather(palette="soft")
  found = read_glyphs(soft["image"], palette=1)
  np.testing.assert_array_equal(found.attributes, soft["attributes"])
  wrong = read_glyphs(soft["image"])
  assert (wrong.attributes[:, 1] != soft["attributes"][:, 1]).any()
  assert (wrong.residual > found.residual).all()


def test_mean_iou_is_a_mean_over_classes():
  wanted = np.array([[[0, 0], [1, 1]]])
  seen = np.array([[[0, 1], [1, 1]]])
  # background 1/2, class 1 2/3; class 2 is not wanted
  found = condition_accuracy.mean_iou(seen, wanted, 3)["mean_iou"]
  assert found == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_box_iou_of_a_shift_by_half():
  segmap = np.zeros((1, 8, 8), int)
  segmap[0, 0:4, 2:6] = 1
  boxes = np.array([[[0.0, 0.0, 0.5, 0.5, 0]]])  # columns 0 to 4
  found = condition_accuracy.box_iou(segmap, boxes)["layout_iou"]
  assert found == pytest.approx(8 / 24)
  assert condition_accuracy.box_iou(0 * segmap, boxes)["layout_iou"] == 0


def test_filling_counts_pixels_and_sees_misfits():
  masks = np.stack(
    [
      Masks(("box",))({"image": image}, np.random.default_rng(i))
      for i, image in enumerate(TRUE["image"])
    ]
  )
  told = condition_accuracy.inpainting_accuracy(
    TRUE["image"], TRUE["image"], masks, VERDICT
  )
  assert told == {"changed_outside": 0, "consistent": 1.0}
  other = np.roll(TRUE["image"], 1, axis=0)
  mixed = np.where(masks[..., None], other, TRUE["image"])
  told = condition_accuracy.inpainting_accuracy(
    mixed, TRUE["image"], masks, read_glyphs(mixed)
  )
  assert told["changed_outside"] == 0 and told["consistent"] < 0.3
  spoilt = TRUE["image"].copy()
  spoilt[0][~masks[0]] ^= 1
  told = condition_accuracy.inpainting_accuracy(
    spoilt, TRUE["image"], masks, VERDICT
  )
  assert told["changed_outside"] == (~masks[0]).sum()


def test_enlargement_measures_both_ways():
  small = np.stack([area(image, 4) for image in TRUE["image"]])
  told = condition_accuracy.upscaling_psnr(TRUE["image"], TRUE["image"], small)
  assert told["psnr_sr"] == 100 and 15 < told["psnr_bicubic"] < 35
  assert told["consistency"] > 50
  other = np.roll(TRUE["image"], 1, axis=0)
  assert (
    condition_accuracy.upscaling_psnr(other, TRUE["image"], small)[
      "consistency"
    ]
    < 20
  )


def test_agreement_against_chance():
  told = condition_accuracy.caption_accuracy(VERDICT, [ROLLED, VERDICT])
  assert told["agreement"] == 1.0
  assert told["agreement_chance"] < 0.15
  none = condition_accuracy.caption_accuracy(VERDICT, [ROLLED])["agreement"]
  assert none < 0.2


def test_diversity_runs_from_one_answer_to_even_dice():
  same = VERDICT._replace(
    attributes=np.repeat(VERDICT.attributes[:1], COUNT, 0)
  )
  assert condition_accuracy.diversity(same)["diversity"] == 0
  many = np.zeros((54, 6), np.int32)
  many[:, 2] = np.arange(54) % 3
  many[:, 3] = np.arange(54) // 3 % 2
  many[:, 4] = np.arange(54) // 6
  even = condition_accuracy.diversity(VERDICT._replace(attributes=many))
  assert even["diversity"] == pytest.approx(1.0)
