"""Transforms: masks, layout tokens, degraded low-resolution copies."""

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.batching import Transform, batches, first
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.data.transforms.degradation import Degradation, area
from ldm_jax.data.transforms.layout_tokens import LayoutTokens
from ldm_jax.data.transforms.masks import Masks

GLYPHS = Glyphs(size=64)
TRANSFORMS = (Masks(), LayoutTokens(1100, 1), Degradation())


def rng(seed=0):
  return np.random.default_rng(seed)


@pytest.mark.parametrize(
  "transform", TRANSFORMS, ids=lambda each: each.output_key
)
def test_transforms_follow_the_protocol(transform):
  assert isinstance(transform, Transform)
  a, b = (transform(GLYPHS[3], rng(7)) for _ in range(2))
  np.testing.assert_array_equal(a, b)


def test_validation_transforms_depend_on_the_index_alone():
  many = first(GLYPHS, 4, transforms=TRANSFORMS)
  few = first(GLYPHS, 2, transforms=TRANSFORMS)
  for transform in TRANSFORMS:
    np.testing.assert_array_equal(
      many[transform.output_key][:2], few[transform.output_key]
    )
  assert not np.array_equal(many["mask"][0], many["mask"][1])


def test_training_transforms_differ_by_epoch_and_repeat_on_resume():
  stream = lambda start: batches(
    Glyphs(size=2),
    batch=2,
    seed=3,
    transforms=TRANSFORMS,
    start=start,
    threads=1,
  )
  a = stream(0)
  one, two = next(a), next(a)
  again = next(stream(1))
  for transform in TRANSFORMS:
    np.testing.assert_array_equal(
      two[transform.output_key], again[transform.output_key]
    )
  assert not np.array_equal(np.sort(one["mask"]), np.sort(two["mask"]))


@pytest.mark.parametrize("kind", ["box", "strokes", "object"])
def test_masks_hide_something_but_not_everything(kind):
  transform = Masks((kind,))
  for i in range(50):
    mask = transform(GLYPHS[i], rng(i))
    assert mask.dtype == bool and mask.shape == (32, 32)
    assert 0 < mask.mean() < 0.9


def test_a_mask_of_an_object_covers_it():
  transform = Masks(("object",))
  for i in range(20):
    item = GLYPHS[i]
    covered = transform(item, rng())[item["segmap"] > 0]
    assert covered.all()
    without = {name: item[name] for name in ("image", "segmap")}
    assert transform(without, rng())[item["segmap"] > 0].all()
  blank = {"image": GLYPHS[0]["image"]}
  assert transform(blank, rng()).any()


@pytest.mark.parametrize(
  "fields",
  [
    {"kinds": ()},
    {"sides": (0.5, 0.2)},
    {"brush": (0.0, 0.1)},
    {"strokes": (0, 2)},
  ],
)
def test_impossible_masks_are_refused(fields):
  with pytest.raises(ValueError, match="Masks"):
    Masks(**fields)


def test_layout_ids_are_those_of_the_paper():
  """8,192 ids give a grid of 90 (LDM's config), 92 of them to an image."""
  transform = LayoutTokens()
  assert transform.side == 90 and transform.length == 92
  boxes = np.array([[0.0, 0.0, 1.0, 1.0, 17], [0.5, 0.25, 0.75, 1.0, 3]])
  ids = transform.encode(boxes)
  # round(0.25 * 89) = 22, round(0.5 * 89) = 44, round(0.75 * 89) = 67
  assert ids[:6].tolist() == [17, 0, 8099, 3, 22 * 90 + 44, 89 * 90 + 67]
  assert (ids[6:90] == 8191).all()
  assert ids[90:].tolist() == [0, 8099]
  found = transform.decode(ids)
  np.testing.assert_allclose(found, boxes, atol=0.5 / 89 + 1e-9)


def test_layouts_are_shuffled_truncated_and_hold_their_crop():
  transform = LayoutTokens(8192, 2)
  boxes = np.array([[0, 0, 0.5, 0.5, k] for k in range(4)] + [[-1] * 5])
  item = {"boxes": boxes, "crop": np.array([0.1, 0.2, 0.6, 0.7])}
  seen = set()
  for seed in range(100):
    ids = transform(item, rng(seed))
    seen.add((ids[0], ids[3]))
  assert len(seen) == 12  # ordered pairs of four
  assert ids[-2:].tolist() == [18 * 90 + 9, 62 * 90 + 53]


def test_impossible_layouts_are_refused():
  with pytest.raises(ValueError, match="class 8191"):
    LayoutTokens().encode(np.array([[0, 0, 1, 1, 8191.0]]))
  with pytest.raises(ValueError, match="the limit is"):
    LayoutTokens(objects=1).encode(np.zeros((2, 5)))
  with pytest.raises(ValueError, match="vocabulary of 3"):
    LayoutTokens(3)


def test_boxes_are_mirrored_with_their_image():
  boxes = np.array([[0.1, 0.2, 0.3, 0.9, 5], [-1] * 5], np.float32)
  item = {"image": np.zeros((8, 16, 3), np.uint8), "boxes": boxes}
  augment = Augment(8, "random", flip=True)
  kept = set()
  for seed in range(8):
    cut = augment.random(item, rng(seed))
    mirrored = [0.7, 0.2, 0.9, 0.9, 5]
    is_mirrored = np.allclose(cut["boxes"][0], mirrored)
    assert is_mirrored or np.array_equal(cut["boxes"], boxes)
    assert (cut["boxes"][1] == -1).all()
    assert np.isclose(cut["crop"][2] - cut["crop"][0], 0.5)
    kept.add(is_mirrored)
  assert kept == {True, False}
  centre = augment.center(item)
  np.testing.assert_allclose(centre["crop"], [0.25, 0, 0.75, 1])


def test_crop_is_the_part_of_the_image_that_is_kept():
  """The pixels in the crop's rectangle are those of the result."""
  ramp = np.arange(64, dtype=np.uint8)
  image = np.broadcast_to(ramp[None, :, None], (64, 64, 3))
  item = {"image": image, "boxes": np.zeros((1, 5), np.float32)}
  augment = Augment(16, scale=(0.25, 0.25), flip=True)
  for seed in range(6):
    cut = augment.random(item, rng(seed))
    x0, _, x1, _ = cut["crop"] * 64
    shown = cut["image"][0, :, 0]
    is_mirrored = shown[0] > shown[-1]
    left = 64 - x1 if is_mirrored else x0
    assert shown.min() == round(left)


def test_only_bsrgan_is_random_and_all_have_the_same_size():
  photo = np.asarray(
    Image.effect_noise((64, 48), 80).convert("RGB").resize((64, 48))
  )
  item = {"image": photo}
  np.testing.assert_array_equal(
    Degradation(4, "area")(item, rng()), area(photo, 4)
  )
  exact = photo.reshape(12, 4, 16, 4, 3).mean((1, 3))
  assert np.abs(area(photo, 4) - exact).max() <= 0.5
  for kind in ("area", "bicubic", "bsrgan"):
    small = [Degradation(4, kind)(item, rng(seed)) for seed in range(6)]
    assert all(s.shape == (12, 16, 3) and s.dtype == np.uint8 for s in small)
    differ = any(not np.array_equal(small[0], s) for s in small)
    assert differ == (kind == "bsrgan")


def test_bsrgan_keeps_position_and_brightness():
  """Of a smooth image: no shift, no change of brightness."""
  v, u = np.mgrid[:64, :64] / 64
  smooth = np.stack([u, v, 0.5 * u + 0.5 * v], axis=-1)
  image = np.round(60 + 130 * smooth).astype(np.uint8)
  expected = area(image, 4).astype(float)
  for seed in range(30):
    small = Degradation()({"image": image}, rng(seed)).astype(float)
    inner = (small - expected)[2:-2, 2:-2]
    assert abs(inner.mean()) < 3 and np.abs(inner).mean() < 6, seed


def test_degradation_refuses_sizes_and_factors():
  with pytest.raises(ValueError, match="does not divide"):
    Degradation(4)({"image": np.zeros((30, 32, 3), np.uint8)}, rng())
  with pytest.raises(ValueError, match="must be 2 or more"):
    Degradation(1)
