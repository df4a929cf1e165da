"""Bad images are replaced, logged and limited; nothing else changes."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from untrained import FOLDER

from ldm_jax.cli import train
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.data.bad_images import BadImageLog, SkipBadImages
from ldm_jax.data.batching import batches
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.errors import DataError
from ldm_jax.runtime.monitoring import metric_writer

COUNT = 60

pytestmark = pytest.mark.filterwarnings("ignore:Image size")


def encoded(image, form="JPEG"):
  file = io.BytesIO()
  Image.fromarray(image).save(file, form)
  return file.getvalue()


def bomb():
  """A PNG of 90 million pixels in a few kilobytes."""
  file = io.BytesIO()
  Image.new("1", (9000, 10000)).save(file, "PNG")
  return file.getvalue()


def animated():
  frames = [Image.new("RGB", (24, 24), (n * 80, 0, 0)) for n in range(3)]
  file = io.BytesIO()
  frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
  return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Sixty images, six of them bad in six ways."""
  root = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for number in range(COUNT):
    image = rng.integers(0, 256, (24, 32, 3), np.uint8)
    image[:, :, 0] = number
    (root / f"{number:02d}.png").write_bytes(encoded(image, "PNG"))
  whole = (root / "07.png").read_bytes()
  (root / "07.png").write_bytes(whole[: len(whole) // 2])
  (root / "08.png").write_bytes(b"<html>404 not found</html>")
  (root / "21.png").write_bytes(bomb())
  (root / "33.png").write_bytes(b"")
  flipped = bytearray((root / "59.png").read_bytes())
  flipped[len(flipped) // 2] ^= 255
  (root / "59.png").write_bytes(bytes(flipped))
  (root / "40.png").write_bytes(animated())
  return root


BAD = {
  7: "truncated",
  8: "not_an_image",
  21: "too_large",
  40: "animated",
  59: "corrupt",
}


def replacement(number):
  while number in (*BAD, 33):
    number = (number + 1) % COUNT
  return number


def taken(folder, log, start=0, count=30, threads=4, **options):
  stream = batches(
    SkipBadImages(Folder(str(folder)), log),
    batch=8,
    seed=1,
    augment=Augment(16),
    start=start,
    threads=threads,
    **options,
  )
  return [next(stream)["image"] for _ in range(count)]


def test_a_bad_image_is_replaced_by_the_next_good_one(folder, caplog):
  log = BadImageLog(fraction=0.1)
  source = SkipBadImages(Folder(str(folder)), log)
  for number in range(COUNT):
    found, expected = source[number]["image"], replacement(number)
    np.testing.assert_array_equal(found, Folder(str(folder))[expected]["image"])
  assert len(log) == 6
  lines = [record.getMessage() for record in caplog.records]
  assert sum(line.startswith("replaced: ") for line in lines) == 6


def test_every_bad_image_is_logged_once_with_its_kind(folder, tmp_path):
  path = tmp_path / "bad.jsonl"
  for _ in range(2):  # as by a run that is resumed
    taken(folder, BadImageLog(str(path), 0.1))
  logged = [json.loads(line) for line in path.read_text().splitlines()]
  assert sorted(line["example"] for line in logged) == [7, 8, 21, 33, 40, 59]
  kinds = {line["example"]: line["kind"] for line in logged}
  assert {n: kinds[n] for n in BAD} == BAD
  assert all(
    line["path"].endswith(f"{line['example']:02d}.png") for line in logged
  )


def test_an_incomplete_line_of_a_killed_run_is_cut_off(folder, tmp_path):
  path = tmp_path / "bad.jsonl"
  taken(folder, BadImageLog(str(path), 0.1))
  whole = path.read_text()
  path.write_text(whole[:-30])
  for _ in range(2):
    taken(folder, BadImageLog(str(path), 0.1))
  assert sorted(path.read_text()) == sorted(whole)


def test_batches_do_not_depend_on_start_threads_or_rows(folder):
  whole = taken(folder, BadImageLog(fraction=0.1))
  assert {batch.shape for batch in whole} == {(8, 16, 16, 3)}
  for start, threads in ((0, 1), (11, 8), (29, 0)):
    found = taken(folder, BadImageLog(fraction=0.1), start, 30 - start, threads)
    np.testing.assert_array_equal(found, whole[start:])
  halves = [
    taken(folder, BadImageLog(fraction=0.1), rows=rows)
    for rows in (range(4), range(4, 8))
  ]
  np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)


def test_buckets_hold_replacements_too(folder):
  found = taken(folder, BadImageLog(fraction=0.1), buckets=((16, 16), (12, 16)))
  assert {batch.shape[1:3] for batch in found} <= {(16, 16), (12, 16)}


def test_more_bad_images_than_allowed_are_an_error_that_lists_kinds(folder):
  with pytest.raises(
    DataError, match=r"6 of 60 images are bad \(.*truncated 1.*0\.09"
  ):
    taken(folder, BadImageLog(fraction=0.09))
  with pytest.raises(DataError, match="of 60 images are bad"):
    taken(folder, BadImageLog())


def test_a_source_without_a_good_image_is_an_error(tmp_path):
  for number in range(3):
    (tmp_path / f"{number}.png").write_bytes(b"no image")
  with pytest.raises(DataError, match="none of 3 images is good"):
    _ = SkipBadImages(Folder(str(tmp_path)), BadImageLog(fraction=1.0))[1]


def trained(config, workdir, *flags):
  return train.main(
    [
      f"--config={config}",
      f"--workdir={workdir}",
      "--config.reports.every=1",
      "--config.reports.previews_every=0",
      *flags,
    ]
  )


@pytest.mark.slow
def test_a_run_over_bad_images_is_resumed_exactly(folder, tmp_path, capsys):
  config = tmp_path / "config.py"
  (tmp_path / "good").mkdir()
  shutil.copy(folder / "00.png", tmp_path / "good")
  good = str(tmp_path / "good")
  config.write_text(FOLDER.format(source=str(folder), good=good))
  nine = "--config.steps=9"
  allow = "--config.data.max_bad_fraction=0.1"
  assert trained(config, tmp_path / "whole", allow, nine) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert result["bad_samples"] == 6
  assert trained(config, tmp_path / "cut", allow, "--config.steps=4") == 0
  assert (
    trained(config, tmp_path / "cut", allow, nine, "--config.data.threads=1")
    == 0
  )
  losses = [
    [
      line["loss"]
      for line in metric_writer.read_metrics(str(tmp_path / n))
      if "loss" in line
    ]
    for n in ("whole", "cut")
  ]
  assert losses[0] == losses[1] and len(losses[0]) == 9
  lines = (tmp_path / "cut" / "bad_samples.jsonl").read_text().splitlines()
  assert len(lines) == 6
  with pytest.raises(CommandError, match=r"max_bad_fraction is 0\.001") as stop:
    trained(config, tmp_path / "strict", nine)
  assert stop.value.code == 4
