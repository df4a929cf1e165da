"""Aspect-ratio buckets: batches of one shape, the nearest to their images'."""

import collections
import pathlib

import numpy as np
import pytest
from PIL import Image

from ldm_jax.cli import train
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.data import batching
from ldm_jax.data.buckets import SHAPE, Buckets, shapes
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.runtime.monitoring import metric_writer

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
WIDE, SQUARE, TALL = (16, 32), (24, 24), (32, 16)
SHAPES = (SQUARE, WIDE, TALL)


class Numbers:
  """A source that has only sizes."""

  def __init__(self, sizes):
    self.sizes = np.asarray(sizes)

  def __len__(self):
    return len(self.sizes)

  def __getitem__(self, index):
    return {"number": index}


def random_sizes(count, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(50, 200, (count, 2))


def test_shapes_are_those_of_sdxl():
  """Podell et al. 2023, appendix I: all of theirs up to a ratio of 2."""
  ours = shapes(1024 * 1024)
  theirs = [(1024, 1024), (960, 1088), (896, 1152), (832, 1216), (768, 1344)]
  assert set(theirs) <= set(ours) and ours[0] == (1024, 1024)
  assert {(width, height) for height, width in ours} == set(ours)
  for height, width in ours:
    assert height % 64 == width % 64 == 0
    assert abs(height * width / 1024**2 - 1) < 0.1
    assert 1 / 2 <= height / width <= 2
  with pytest.raises(ValueError, match="smaller multiple"):
    shapes(1000, multiple=64)


def test_every_batch_has_one_shape_and_its_nearest_images():
  source = Numbers(random_sizes(300))
  buckets = Buckets(source, SHAPES, 8, seed=1)
  ratios = np.log([height / width for height, width in SHAPES])
  seen = collections.Counter()
  total = buckets._total
  for number in range(total):
    batch = [buckets[number * 8 + row] for row in range(8)]
    assert len({item[SHAPE] for item in batch}) == 1
    for item in batch:
      height, width = source.sizes[item["number"]]
      distances = np.abs(np.log(height / width) - ratios)
      assert SHAPES[int(np.argmin(distances))] == item[SHAPE]
      seen[item["number"]] += 1
  # No example twice in an epoch, and less than a batch of each shape left over.
  assert set(seen.values()) == {1} and len(seen) > 300 - 3 * 8
  # The remainder comes in another epoch, in another order.
  more = {buckets[position]["number"] for position in range(total * 8 * 6)}
  assert more == set(range(300))
  first, second = (
    [buckets[epoch * total * 8 + i]["number"] for i in range(64)]
    for epoch in (0, 1)
  )
  assert first != second
  again = Buckets(Numbers(random_sizes(300)), SHAPES, 8, seed=1)
  assert first == [again[i]["number"] for i in range(64)]


def test_images_of_a_rare_shape_go_to_the_next_nearest():
  sizes = [(10, 20)] * 3 + [(20, 20)] * 20 + [(20, 10)] * 9
  buckets = Buckets(Numbers(sizes), SHAPES, 8, seed=0)
  found = {SHAPES[n]: len(members) for n, members in buckets.members.items()}
  assert found == {SQUARE: 23, TALL: 9}


def fill(root, sizes):
  rng = np.random.default_rng(0)
  for i, (height, width) in enumerate(sizes):
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(root / f"{i:03d}.png")
  return Folder(str(root))


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / "images"
  root.mkdir()
  return fill(root, [(40, 90), (50, 45), (90, 40), (64, 128)] * 8)


def take(folder, count, **options):
  stream = batching.batches(
    folder,
    batch=4,
    seed=5,
    augment=Augment(24, scale=(0.5, 1.0)),
    buckets=SHAPES,
    threads=2,
    **options,
  )
  return [next(stream) for _ in range(count)]


def test_batches_are_cropped_to_their_shapes(folder):
  assert folder.sizes[:3].tolist() == [[40, 90], [50, 45], [90, 40]]
  whole = take(folder, 6)
  found = {batch["image"].shape for batch in whole}
  assert found == {(4, *shape, 3) for shape in SHAPES}
  # Whatever the number of processes, and from any step on.
  halves = [take(folder, 6, rows=rows) for rows in ([0, 1], [2, 3])]
  for n, batch in enumerate(whole):
    parts = [half[n]["image"] for half in halves]
    np.testing.assert_array_equal(batch["image"], np.concatenate(parts))
  for one, other in zip(whole[2:], take(folder, 4, start=2), strict=True):
    np.testing.assert_array_equal(one["image"], other["image"])


def test_a_crop_has_the_ratio_of_its_shape():
  """An image of gradients: both axes are scaled alike."""
  rows, columns = np.mgrid[0:120, 0:200]
  image = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
  augment, rng = (
    Augment(24, scale=(0.4, 1.0), flip=False),
    np.random.default_rng(0),
  )
  for shape in SHAPES:
    for _ in range(5):
      cut = augment.random({"image": image}, rng, shape)["image"].astype(float)
      assert cut.shape == (*shape, 3)
      down = (cut[-1, 0, 0] - cut[0, 0, 0]) / (shape[0] - 1)
      across = (cut[0, -1, 1] - cut[0, 0, 1]) / (shape[1] - 1)
      np.testing.assert_allclose(down, across, rtol=0.1)


def test_impossible_buckets_are_refused(folder):
  with pytest.raises(ValueError, match="Folder or Shards; Glyphs has none"):
    Buckets(Glyphs(), SHAPES, 8, 0).check()
  with pytest.raises(ValueError, match="32 examples make no batch of 33"):
    Buckets(folder, SHAPES, 33, 0).check()
  with pytest.raises(ValueError, match="an augment to crop them"):
    next(batching.batches(folder, batch=4, seed=0, buckets=SHAPES))


CONFIG = """
import dataclasses

from ldm_jax import config
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.data.sources.folder import Folder


def get_config():
  made = config.load({base!r})
  source = Folder({path!r})
  data = dataclasses.replace(
    made.data, source=source, validation=source,
    augment=Augment(16, flip=False),
    buckets=((16, 16), (16, 32), (32, 16)), batch=8, held_out=8,
  )
  return dataclasses.replace(made, data=data, steps=9)
"""


@pytest.mark.slow
def test_a_shape_is_compiled_once_and_logged(folder, tmp_path, capsys):
  path = tmp_path / "config.py"
  base = str(CONFIGS / "glyphs_autoencoder.py")
  path.write_text(CONFIG.format(base=base, path=folder.path))
  flags = [
    f"--config={path}",
    f"--workdir={tmp_path / 'run'}",
    "--config.task.autoencoder.trunk.channels=8",
    "--config.task.autoencoder.trunk.multipliers=1,2",
    "--config.task.autoencoder.trunk.groups=4",
    "--config.reports.previews_every=0",
    "--config.reports.every=1",
    "--config.checkpoints.every=9",
  ]
  with pytest.raises(
    CommandError, match=r"data.buckets \(16, 17\): image size"
  ):
    train.main([*flags, "--config.data.buckets=((16, 17),)"])
  assert not (tmp_path / "run").exists()
  assert train.main(flags) == 0
  lines = capsys.readouterr().err
  assert lines.count("compiling the training step ...") == 1
  assert lines.count("compiling step 2, for 32 x 16 ...") == 1
  assert lines.count("compiling step 3, for 16 x 16 ...") == 1
  assert "compiling step 4" not in lines
  lines = metric_writer.read_metrics(str(tmp_path / "run"))
  assert [line["step"] for line in lines if "loss" in line] == [*range(1, 10)]
