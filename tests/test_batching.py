"""Batch number n is a pure function of (source, seed, n)."""

import dataclasses
import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.batching import batches, example_indices, first, ordered
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.text.tokenizers import TokenizerConfig
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.errors import ImageError

AUGMENT = Augment(8, scale=(0.5, 1.0))


@dataclasses.dataclass(frozen=True)
class Noise:
  """Random images, each with its number as label and in its caption."""

  count: int = 10
  height: int = 12
  width: int = 20

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> dict[str, Any]:
    rng = np.random.default_rng(index)
    shape = (self.height, self.width, 3)
    return {
      "image": rng.integers(0, 256, shape, np.uint8),
      "label": np.int32(index),
      "caption": f"image {index}",
    }


class Coordinates:
  """An image of its pixels' coordinates, and the same as a map."""

  def __init__(self, height, width, count=512):
    rows, columns = np.mgrid[:height, :width]
    self.image = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    self.count = count

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    segmap = self.image[..., 1].astype(np.int32)
    return {"image": self.image, "segmap": segmap, "label": np.int32(index)}


def take(number, source=None, **options):
  options = {"batch": 4, "seed": 0} | options
  stream = batches(source or Noise(), **options)
  taken = list(itertools.islice(stream, number))
  stream.close()
  return taken


def assert_equal(one, other):
  assert len(one) == len(other)
  for left, right in zip(one, other, strict=True):
    assert left.keys() == right.keys()
    for key in left:
      np.testing.assert_array_equal(left[key], right[key], err_msg=key)


@pytest.fixture(scope="module")
def tokenizer():
  return TokenizerConfig(length=6).build([f"image {i}" for i in range(10)])


def test_batches_from_n_continue_the_same_stream(tokenizer):
  whole = take(9, augment=AUGMENT, tokenizer=tokenizer)
  for start in 1, 3, 7:  # the third batch spans two epochs
    rest = take(9 - start, augment=AUGMENT, tokenizer=tokenizer, start=start)
    assert_equal(rest, whole[start:])


def test_a_start_far_ahead_is_reached_directly():
  far = take(1, augment=AUGMENT, start=10**9)
  assert_equal(take(1, augment=AUGMENT, start=10**9), far)
  assert sorted(set(far[0]["label"].tolist())) == sorted(far[0]["label"])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_put_together_are_one_global_batch(processes, tokenizer):
  options = {"augment": AUGMENT, "tokenizer": tokenizer, "batch": 8, "start": 2}
  held = np.split(np.arange(8), processes)
  parts = [take(4, rows=rows, **options) for rows in held]
  together = [
    {
      key: np.concatenate([part[n][key] for part in parts])
      for key in parts[0][n]
    }
    for n in range(4)
  ]
  assert_equal(together, take(4, **options))


@pytest.mark.parametrize("threads", [0, 1, 3, 16])
def test_threads_do_not_change_anything(threads, tokenizer):
  options = {"augment": AUGMENT, "tokenizer": tokenizer}
  assert_equal(take(6, threads=threads, **options), take(6, **options))


def test_every_epoch_is_another_permutation():
  labels = np.concatenate([b["label"] for b in take(30, Noise(12))])
  epochs = labels.reshape(10, 12)
  np.testing.assert_array_equal(np.sort(epochs), [range(12)] * 10)
  assert len({tuple(epoch) for epoch in epochs}) == 10


def test_seeds_differ_in_order_and_in_augmentation():
  one, other = take(5, augment=AUGMENT), take(5, augment=AUGMENT, seed=1)
  labels = [np.concatenate([b["label"] for b in run]) for run in (one, other)]
  assert (labels[0] != labels[1]).any()
  single = Noise(1)
  left = take(1, single, augment=AUGMENT)[0]["image"]
  right = take(1, single, augment=AUGMENT, seed=1)[0]["image"]
  assert (left != right).any()
  assert (left[0] != left[1]).any()  # one image, two epochs, two crops


def test_an_example_is_equally_likely_at_every_position():
  """Chi squared of (position, example) counts over 100 epochs, 49 degrees."""
  labels = np.concatenate([b["label"] for b in take(100, Noise(8), batch=8)])
  counts = np.zeros((8, 8))
  for position, label in enumerate(labels):
    counts[position % 8, label] += 1
  assert (
    (counts - 12.5) ** 2 / 12.5
  ).sum() < 94  # the 99.99 % quantile of a uniform shuffle


def test_without_augment_an_example_is_unchanged(tokenizer):
  source = Noise()
  for batch in take(3, tokenizer=tokenizer):
    assert batch.keys() == {"image", "label", "tokens"}
    assert batch["tokens"].dtype == np.int32
    for row, label in enumerate(batch["label"]):
      item = source[int(label)]
      np.testing.assert_array_equal(batch["image"][row], item["image"])
      expected = tokenizer.encode([item["caption"]])[0]
      np.testing.assert_array_equal(batch["tokens"][row], expected)
  assert "tokens" not in take(1)[0]


def test_half_of_the_images_are_mirrored_and_otherwise_unchanged():
  source = Coordinates(8, 8)
  images = np.concatenate(
    [b["image"] for b in take(16, source, batch=32, augment=Augment(8))]
  )
  mirrored = (images[:, 0, 0, 1] == 7).astype(int)
  expected = np.where(
    mirrored[:, None, None, None], source.image[:, ::-1], source.image
  )
  np.testing.assert_array_equal(images, expected)
  assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(512)  # 4 sigma
  still = take(4, source, batch=32, augment=Augment(8, flip=False))
  assert all((b["image"] == source.image).all() for b in still)


def test_random_crops_are_spread_evenly_and_center_is_the_middle():
  source = Coordinates(8, 18)  # 11 places for a square of 8: 0 to 10
  augment = Augment(8, flip=False)
  lefts = np.concatenate(
    [
      b["image"][:, 0, 0, 1]
      for b in take(16, source, batch=32, augment=augment)
    ]
  )
  counts = np.bincount(lefts, minlength=11)
  assert len(counts) == 11
  fair = 512 / 11
  assert ((counts - fair) ** 2 / fair).sum() < 36  # 99.99 %, 10 degrees
  center = dataclasses.replace(augment, crop="center")
  for batch in take(3, source, augment=center):
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 1], [5] * 4)
  np.testing.assert_array_equal(
    first(source, 2, augment=AUGMENT)["image"][:, 0, 0, 1], [5, 5]
  )


def test_the_side_of_a_crop_is_uniform_in_scale():
  source = Coordinates(200, 200)
  augment = Augment(50, scale=(0.5, 1.0), flip=False)
  batch = take(1, source, batch=512, augment=augment)[0]["image"].astype(int)
  # A ramp keeps its slope: last - first = 49/50 of the side.
  sides = (batch[:, 25, 49, 1] - batch[:, 25, 0, 1]) * 50 / 49
  assert 98 <= sides.min() < 104 and 196 < sides.max() <= 203
  error = 100 / np.sqrt(12 * 512)
  assert abs(sides.mean() - 150) < 4 * error
  rows = batch[:, 49, 25, 0] - batch[:, 0, 25, 0]
  assert abs(rows * 50 / 49 - sides).max() < 3  # square


def test_maps_follow_the_image():
  augment = Augment(8, scale=(0.4, 1.0))
  for batch in take(4, Coordinates(40, 60), batch=16, augment=augment):
    assert batch["segmap"].shape == (16, 8, 8)
    columns = batch["image"][..., 1].astype(int)
    assert np.abs(columns - batch["segmap"])[:, :, 1:-1].max() <= 2


def test_first_and_ordered_are_neither_shuffled_nor_mirrored(tokenizer):
  source = Noise(height=8, width=8)
  got = first(source, 3, augment=Augment(8), tokenizer=tokenizer)
  np.testing.assert_array_equal(got["label"], [0, 1, 2])
  np.testing.assert_array_equal(
    got["image"], [source[i]["image"] for i in range(3)]
  )
  np.testing.assert_array_equal(
    got["tokens"], tokenizer.encode([f"image {i}" for i in range(3)])
  )
  back = ordered(source, [2, 0])
  np.testing.assert_array_equal(back["label"], [2, 0])
  with pytest.raises(ValueError, match="index 10; Noise has 10 examples"):
    first(source, 11)


def test_examples_that_do_not_fit_into_one_batch_are_an_error():
  items = [Noise()[i] for i in range(6)]
  items[4].pop("label")
  with pytest.raises(ValueError, match="some examples have 'label' and others"):
    first(items, 6)
  with pytest.raises(ValueError, match="some examples have 'label' and others"):
    take(6, items, batch=1)
  sizes = [{"image": np.zeros((5 + i, 5, 3), np.uint8)} for i in range(4)]
  with pytest.raises(ValueError, match=r"'image' of shape .* set augment"):
    take(1, sizes)
  assert take(1, sizes, augment=Augment(4))[0]["image"].shape == (4, 4, 4, 3)
  with pytest.raises(ValueError, match=r"nothing to augment: .* moments"):
    first([{"moments": np.zeros((4, 4, 8))}], 1, augment=Augment(4))


def test_threads_raise_the_error_of_a_bad_image(tmp_path):
  for name in "abc":
    Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
  (tmp_path / "b.png").write_bytes(b"nothing")
  with pytest.raises(ImageError, match=r"b\.png: not_an_image") as caught:
    take(3, Folder(str(tmp_path)))
  assert caught.value.path == str(tmp_path / "b.png")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"batch": 6, "rows": (5, 6)}, "must be rows of a batch, 0 to 5"),
    ({"batch": 6, "rows": ()}, "must be rows of a batch"),
    ({"batch": 0}, "batch 1 or more, got 0 and 0"),
    ({"start": -1}, "start must be 0 or more and batch 1 or more, got -1"),
    ({"source": []}, "the source has no examples"),
  ],
)
def test_wrong_arguments_are_refused_at_the_call(options, message):
  options = {"source": Noise(), "batch": 4, "seed": 0} | options
  with pytest.raises(ValueError, match=message):
    batches(options.pop("source"), **options)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.9, 0.8), (0.5, 1.5)])
def test_wrong_scales_are_refused(scale):
  with pytest.raises(ValueError, match="scale"):
    Augment(8, scale=scale)
  with pytest.raises(ValueError, match="size: needs 1 or more"):
    Augment(0)


def test_imports_are_light_and_an_unfinished_stream_ends_without_output():
  code = """
import sys
from ldm_jax.data import batching, images
from ldm_jax.data.sources import folder, tfds_source
from ldm_jax.data.text import tokenizers
heavy = {"jax", "grain", "transformers", "tokenizers", "tensorflow_datasets"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
import numpy as np
stream = batching.batches(
  [{"image": np.zeros((4, 4, 3), np.uint8)}] * 9, batch=4, seed=0)
print(next(stream)["image"].shape)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout == "(4, 4, 4, 3)\n"


def test_example_indices_are_those_of_the_batch():
  source = Noise(10)
  stream = batches(source, batch=4, seed=3)
  for number in range(6):
    found = example_indices(source, batch=4, seed=3, number=number)
    assert found == next(stream)["label"].tolist()
