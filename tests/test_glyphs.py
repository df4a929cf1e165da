"""Glyphs: images agree with their captions, maps, boxes and attributes."""

import dataclasses
import hashlib
import inspect
import json
import re

import numpy as np
import pytest

from ldm_jax.data.glyphs import scenes
from ldm_jax.data.glyphs.captions import caption_words
from ldm_jax.data.glyphs.source import Glyphs, is_held_out
from ldm_jax.evaluation.glyphs.condition_accuracy import mean_iou
from ldm_jax.evaluation.glyphs.glyph_classifier import read_glyphs

SPLITS = ("train", "validation", "held_out")
# Between two objects; "at the top left of a plain black background" is none.
RELATION = re.compile(
  "(left of|above)(?: and (?:in front of|behind))? a (?:small|large)"
)


def digest(source, count):
  """SHA-256 of image, caption and all numbers, sample after sample."""
  total = hashlib.sha256()
  for i in range(count):
    sample = source[i]
    total.update(sample.pop("caption").encode())
    for name in sorted(sample):
      total.update(np.ascontiguousarray(sample[name]).tobytes())
  return total.hexdigest()


# Made by this function on x86-64 when the data set was defined; numpy 2.0.0,
# 2.4.6 and 2.5.5 agree. If this fails, published scores are not comparable:
# give the data set a new name, do not change the number.
@pytest.mark.parametrize(
  "level, sha",
  [
    (0, "037e8b282879d5279248088634a43d5c2da1d42f7dc93c3fba08cccc6adc8ea0"),
    (1, "ab6fd1ec143d21416879947b1ae225a9f0c3492bbb72fe35e8bafcfdf185c9c8"),
  ],
)
def test_the_first_thousand_samples_are_the_published_ones(level, sha):
  assert digest(Glyphs(level=level), 1000) == sha


@pytest.mark.parametrize("level", [0, 1])
def test_a_sample_depends_on_level_split_seed_and_index_only(level):
  source = Glyphs(level=level, size=100, seed=2**64 - 1)
  backwards = [source[i]["image"] for i in reversed(range(20))]
  longer = Glyphs(level=level, size=1000, seed=2**64 - 1)
  for i, image in enumerate(reversed(backwards)):
    np.testing.assert_array_equal(longer[np.int64(i)]["image"], image)
  assert digest(source, 20) != digest(Glyphs(level=level, size=100), 20)


def test_changing_a_sample_does_not_change_the_source():
  source = Glyphs(level=1, size=1)
  before = digest(source, 1)
  source[0]["image"][:] = 7
  source[0]["segmap"][:] = 7
  assert digest(source, 1) == before


def test_iterating_ends_with_the_last_sample():
  assert len(list(Glyphs(size=7))) == len(Glyphs(size=7)) == 7


@pytest.mark.parametrize("level", [0, 1])
def test_held_out_pairs_are_in_no_other_split(level):
  pairs = {}
  for split in SPLITS:
    source = Glyphs(level=level, split=split, size=600)
    pairs[split] = {
      int(label)
      for sample in source
      for label in sample["boxes"][:, 4]
      if label >= 0
    }
  assert pairs["train"] == pairs["validation"] == set(Glyphs(level).labels)
  assert pairs["held_out"] == set(Glyphs(level, "held_out").labels)
  assert not pairs["train"] & pairs["held_out"]
  fraction = len(pairs["held_out"]) / len(pairs["held_out"] | pairs["train"])
  assert 0.09 < fraction < 0.11


@pytest.mark.parametrize("shapes", [6, 12])
def test_every_shape_and_colour_is_trained_with_some_partner(shapes):
  kept = [n for n in range(shapes * 8) if not is_held_out(n)]
  assert {n // 8 for n in kept} == set(range(shapes))
  assert {n % 8 for n in kept} == set(range(8))


def test_splits_have_no_image_in_common():
  images = [
    {sample["image"].tobytes() for sample in Glyphs(1, split, 200)}
    for split in SPLITS
  ]
  assert len(set.union(*images)) == 600


def test_every_attribute_value_is_equally_frequent():
  rows = np.stack([s["attributes"] for s in Glyphs(0, size=4000)])
  for column, values in zip(rows.T[2:], (3, 2, 9, 4), strict=True):
    counts = np.bincount(column, minlength=values)
    # chi-squared is values - 1 on average, and below this but once in 10^5.
    expected = len(rows) / values
    assert ((counts - expected) ** 2 / expected).sum() < values + 30


def test_a_caption_names_all_six_attributes():
  tables = (
    list(scenes.SHAPES),
    list(scenes.COLOURS),
    scenes.TEXTURES,
    scenes.SIZES,
    scenes.POSITIONS,
    list(scenes.BACKGROUNDS),
  )
  vocabulary = set(caption_words(0))
  for sample in Glyphs(0, size=500):
    text = sample["caption"]
    assert set(text.split()) <= vocabulary
    for table, k in zip(tables, sample["attributes"], strict=True):
      assert f" {table[k]}" in text, (text, table[k])
      longer = [n for n in table if table[k] in n and n != table[k]]
      assert not any(name in text for name in longer), (text, table[k])


def test_captions_have_four_paraphrases():
  firsts = [s["caption"].split()[:1] for s in Glyphs(0, size=400)]
  for word in ("a", "on", "at"):
    assert firsts.count([word]) > 50
  captions = {s["caption"] for s in Glyphs(0, size=400)}
  assert sum(" picture " in text for text in captions) > 50


def test_captions_of_scenes_name_each_object_and_the_number():
  vocabulary = set(caption_words(1))
  shapes, colours = list(scenes.SHAPES), list(scenes.COLOURS)
  for sample in Glyphs(1, size=500):
    text = sample["caption"]
    assert set(text.split()) <= vocabulary
    assert str(sample["number"]) in text.split()
    named = [word for word in text.split() if word in shapes]
    real = sample["attributes"][sample["attributes"][:, 0] >= 0]
    assert named == [shapes[k] for k in real[:, 0]]
    assert all(colours[k] in text for k in real[:, 1])
    assert sample["label"] == real[0, 0] * 8 + real[0, 1]


def test_left_of_and_above_are_true():
  for sample in Glyphs(1, size=500):
    boxes = sample["boxes"][sample["boxes"][:, 4] >= 0]
    at = (boxes[:, :2] + boxes[:, 2:4]) / 2
    relations = RELATION.findall(sample["caption"])
    assert len(relations) == len(boxes) - 1
    for relation, step in zip(relations, np.diff(at, axis=0), strict=True):
      assert step[0 if relation == "left of" else 1] > 0.1


def test_in_front_of_and_behind_are_true():
  seen = 0
  for sample in Glyphs(1, size=600):
    real = sample["attributes"][sample["attributes"][:, 0] >= 0]
    hides = " in front of " in sample["caption"]
    if len(real) != 2 or hides == (" behind " in sample["caption"]):
      continue
    # The thing in front is complete: as many pixels as one that is alone.
    front = real[0 if hides else 1].tolist()
    mask = scenes.stamp(front[0], front[2], scenes.LEVELS[1].radii[front[3]])
    assert scenes.covers(mask).sum() == (
      (sample["segmap"] == 1 + front[0]).sum()
    ) or (real[0, 0] == real[1, 0])
    seen += 1
  assert seen > 10


def test_a_box_encloses_its_object_tightly():
  for sample in Glyphs(0, size=300):
    x0, y0, x1, y1, label = sample["boxes"][0]
    ys, xs = sample["segmap"].nonzero()
    assert (x0 * 32, y0 * 32) == (xs.min(), ys.min())
    assert (x1 * 32, y1 * 32) == (xs.max() + 1, ys.max() + 1)
    assert label == sample["label"]
    assert set(np.unique(sample["segmap"])) == {0, 1 + label // 8}


def test_boxes_of_a_scene_hold_all_of_its_segmap():
  for sample in Glyphs(1, size=300):
    outside = sample["segmap"].copy()
    for x0, y0, x1, y1, label in sample["boxes"]:
      if label >= 0:
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        rows, columns = np.round(np.array([[y0, y1], [x0, x1]]) * 64).astype(
          int
        )
        assert 1 + label // 8 in sample["segmap"][slice(*rows), slice(*columns)]
        outside[slice(*rows), slice(*columns)] = 0
    assert not outside.any()


def test_pixels_are_of_the_background_outside_and_the_colour_inside():
  ground = np.array(list(scenes.BACKGROUNDS.values()))
  colours = np.array(list(scenes.COLOURS.values()))
  for sample in Glyphs(0, size=300):
    _, colour, texture, _, _, background = sample["attributes"]
    far = np.ones((32, 32), bool)
    x0, y0, x1, y1 = np.round(sample["boxes"][0, :4] * 32).astype(int)
    far[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = False
    assert (sample["image"][far] == ground[background]).all()
    inside = sample["image"][sample["segmap"] > 0]
    whole = (inside == colours[colour]).all(1)
    shaded = (inside == colours[colour] // 2).all(1)
    assert whole.any()
    # On black an edge that is half covered looks shaded.
    assert background == 0 or shaded.any() == (texture > 0)


@pytest.mark.parametrize("palette", [0, 1])
def test_colours_half_colours_and_backgrounds_are_far_apart(palette):
  colours = scenes.PALETTES[palette].astype(float)
  ground = np.array(list(scenes.BACKGROUNDS.values()), float)
  shown = np.concatenate([colours, ground])
  for others in (shown, colours / 2):
    gaps = np.linalg.norm(shown[:, None] - others, axis=-1)
    assert gaps[gaps > 0].min() >= 70


def test_another_palette_renders_the_same_scenes():
  vivid, soft, both = (
    Glyphs(palette=name, size=40) for name in ("vivid", "soft", "both")
  )
  gaps = np.linalg.norm(
    scenes.PALETTES[0].astype(float) - scenes.PALETTES[1], axis=1
  )
  assert gaps.min() >= 70
  shown = set()
  for i in range(40):
    a, b, c = vivid[i], soft[i], both[i]
    assert a["caption"] == b["caption"]
    np.testing.assert_array_equal(a["segmap"], b["segmap"])
    assert (a["image"] != b["image"]).any()
    is_soft = np.array_equal(c["image"], b["image"])
    assert is_soft or np.array_equal(c["image"], a["image"])
    shown.add(is_soft)
  assert shown == {True, False}


def test_large_is_at_least_one_and_a_half_times_small():
  assert all(
    large >= 1.5 * small
    for small, large in (level.radii for level in scenes.LEVELS)
  )


def test_the_source_survives_json():
  source = Glyphs(level=1, split="validation", size=3, seed=5)
  assert Glyphs(**json.loads(json.dumps(dataclasses.asdict(source)))) == source


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"level": 2}, "level 2 must be 0"),
    ({"split": "test"}, "split 'test' must be one of"),
    ({"size": 0}, "size 0 must be at least 1"),
    ({"size": 2**31 + 1}, "at most"),
    ({"seed": -1}, "seed -1 must lie"),
    ({"seed": 2**64}, "must lie in"),
  ],
)
def test_a_bad_field_is_named(fields, message):
  # Unwrapped: the type checks of conftest.py would raise first.
  make = inspect.unwrap(Glyphs.__init__)
  with pytest.raises(ValueError, match=message):
    make(object.__new__(Glyphs), **fields)


@pytest.mark.parametrize("index", [-1, 5, 2**40])
def test_an_index_outside_is_an_index_error(index):
  with pytest.raises(IndexError, match=r"must lie in \[0, 5\)"):
    Glyphs(size=5)[index]


@pytest.mark.parametrize("detail", [2, 4])
def test_more_detail_is_the_same_scene(detail):
  plain, fine = Glyphs(size=40), Glyphs(size=40, detail=detail)
  side = 32 * detail
  for one, two in zip(plain, fine, strict=True):
    image = two["image"].reshape(32, detail, 32, detail, 3)
    assert two["image"].shape == (side, side, 3)
    # Both are rounded: halves of levels and a little more.
    assert np.abs(image.mean((1, 3)) - one["image"]).max() <= 1
    assert two["segmap"].shape == (side, side)
    for name in ("caption", "label", "attributes"):
      np.testing.assert_array_equal(one[name], two[name])
    np.testing.assert_allclose(one["boxes"], two["boxes"], atol=1 / 32)
  read = read_glyphs(np.stack([each["image"] for each in fine]))
  expected = np.stack([each["attributes"] for each in fine])
  np.testing.assert_array_equal(read.attributes, expected)
  assert read.residual.max() < 1
  segmaps = np.stack([each["segmap"] for each in fine])
  assert mean_iou(read.segmap, segmaps, 7)["mean_iou"] > 0.85
  with pytest.raises(ValueError, match="detail 3 must be"):
    Glyphs(detail=3)
