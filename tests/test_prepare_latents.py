"""Cached latents replace the images they were encoded from."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest
from test_training import CONFIGS, NO_PREVIEWS, ONE, run
from test_training import TWO as TRAINED
from untrained import untrained

from ldm_jax.cli import prepare
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.data import batching
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.sources.cached_latents import CachedLatents
from ldm_jax.latents import encode_batch
from ldm_jax.run import open_first_stage
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.monitoring import metric_writer
from ldm_jax.training.preparation import latents as cached
from ldm_jax.training.preparation.progress_log import ProgressLog

SIZE = 40
DATA = [f"--config.data.source.size={SIZE}"]
TWO = [*TRAINED, NO_PREVIEWS]  # with programs of test_training


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
  folder = tmp_path_factory.mktemp("stage") / "one"
  flags = [*ONE, NO_PREVIEWS, "--config.steps=1"]
  untrained(CONFIGS / "glyphs_autoencoder.py", folder, flags)
  return str(folder)


def write(stage, out, *flags, config="glyphs_text.py"):
  return prepare.main(
    [
      f"--config={CONFIGS / config}",
      f"--first_stage={stage}",
      f"--out={out}",
      "--batch=8",
      *DATA,
      *flags,
    ]
  )


@pytest.fixture(scope="module")
def folder(stage, tmp_path_factory):
  out = tmp_path_factory.mktemp("latents") / "whole"
  assert write(stage, out, "--dtype=float32") == 0
  return str(out)


def same_files(one, two):
  names = sorted(os.listdir(one))
  assert names == sorted(os.listdir(two))
  for name in names:
    a, b = (pathlib.Path(each, name).read_bytes() for each in (one, two))
    assert a == b, name


def test_moments_are_of_the_images_and_other_arrays_are_kept(stage, folder):
  source, latents = Glyphs(size=SIZE), CachedLatents(folder)
  assert len(latents) == SIZE
  opened = open_first_stage(stage)
  params = opened.trained(MeshShape().build())
  images = np.stack([source[i]["image"] for i in range(SIZE)])
  task = opened.experiment.task
  expected = jax.jit(
    lambda p, x: encode_batch(task.autoencoder, p, {"image": x}).moments
  )(params, images)
  for i in range(SIZE):
    item, original = latents[i], source[i]
    np.testing.assert_allclose(item.pop("moments"), expected[i], atol=1e-5)
    del original["image"]
    assert item.keys() == original.keys()
    for name, value in original.items():
      np.testing.assert_array_equal(item[name], value)


def test_a_posterior_is_rebuilt_from_its_moments(stage, folder):
  opened = open_first_stage(stage)
  module = opened.experiment.task.autoencoder
  params = opened.trained(MeshShape().build())
  images = np.stack([Glyphs()[i]["image"] for i in range(4)])
  kept = CachedLatents(folder).rows(np.arange(4))["moments"]
  encode = jax.jit(lambda batch: encode_batch(module, params, batch))
  a, b = encode({"image": images}), encode({"moments": kept})
  np.testing.assert_allclose(a.mean, b.mean, atol=1e-5)
  np.testing.assert_allclose(a.logvar, b.logvar, atol=1e-4)


def test_an_interrupted_job_resumes_to_the_same_bytes(
  stage, folder, tmp_path, monkeypatch
):
  monkeypatch.setattr(cached, "FLUSH_EVERY", 1)
  take = Glyphs.__getitem__

  def until(self, index):
    if index >= 24:
      raise KeyboardInterrupt
    return take(self, index)

  with monkeypatch.context() as stop, pytest.raises(KeyboardInterrupt):
    stop.setattr(Glyphs, "__getitem__", until)
    write(stage, tmp_path / "cut", "--dtype=float32")
  with pytest.raises(ValueError, match="not complete"):
    len(CachedLatents(str(tmp_path / "cut")))
  read_indices = []

  def noted(self, index):
    read_indices.append(index)
    return take(self, index)

  monkeypatch.setattr(Glyphs, "__getitem__", noted)
  assert write(stage, tmp_path / "cut", "--dtype=float32") == 0
  assert not set(range(1, 8)) & set(
    read_indices
  )  # finished blocks are not encoded again
  same_files(folder, tmp_path / "cut")
  read_indices.clear()
  assert write(stage, tmp_path / "cut", "--dtype=float32") == 0
  assert set(read_indices) <= {0}


@pytest.mark.slow
def test_training_on_latents_is_training_on_their_images(
  stage, folder, tmp_path
):
  losses = []
  for name, more in (
    ("images", []),
    ("latents", [f"--config.data.latents={folder}"]),
  ):
    flags = [*TWO, f"--config.first_stage={stage}", *more]
    assert run("glyphs_text.py", tmp_path / name, 3, flags, every=3) == 0
    lines = metric_writer.read_metrics(str(tmp_path / name))
    losses.append(
      [line["loss"] for line in lines if "loss" in line]
      + [lines[-1]["validation_loss"]]
    )
  assert len(losses[0]) == 4
  np.testing.assert_allclose(*losses, rtol=1e-4)
  # Resumed, and sampled from, without the cache.
  flags = [*TWO, f"--config.first_stage={stage}"]
  flags += [f"--config.data.latents={folder}"]
  assert run("glyphs_text.py", tmp_path / "latents", 4, flags, every=4) == 0


def test_batches_are_the_same_rows_on_any_number_of_processes(folder):
  source = CachedLatents(folder)
  whole = batching.batches(source, batch=8, seed=3)
  parts = [
    batching.batches(source, batch=8, seed=3, rows=rows)
    for rows in (range(4), range(4, 8))
  ]
  late = batching.batches(source, batch=8, seed=3, start=2)
  for step in range(7):  # more than an epoch
    batch = next(whole)
    halves = [next(part) for part in parts]
    for name, array in batch.items():
      together = np.concatenate([half[name] for half in halves])
      np.testing.assert_array_equal(array, together)
    if step >= 2:
      again = next(late)
      np.testing.assert_array_equal(again["moments"], batch["moments"])


def test_every_copy_has_its_own_crop(stage, tmp_path):
  out = tmp_path / "two"
  assert write(stage, out, "--copies=2") == 0
  latents = CachedLatents(str(out))
  assert len(latents) == 2 * SIZE
  assert latents[3]["caption"] == latents[3 + SIZE]["caption"]
  assert latents[3]["moments"].dtype == np.float16


@pytest.mark.parametrize(
  "more, message",
  [
    (["--config.data.source.seed=5"], "made with another source"),
    (["--config.data.latents=nowhere"], "holds no latents"),
  ],
)
def test_unsuitable_latents_are_refused(stage, folder, tmp_path, more, message):
  flags = [*TWO, f"--config.first_stage={stage}"]
  flags += [f"--config.data.latents={folder}", *more]
  with pytest.raises(CommandError, match=message) as caught:
    run("glyphs_text.py", tmp_path / "x", 1, flags)
  assert caught.value.code == 2 and not os.path.exists(tmp_path / "x")


def test_image_inputs_and_other_first_stages_are_refused(
  stage, folder, tmp_path
):
  def refused(config, message, *more):
    flags = [*TWO, f"--config.first_stage={stage}", *more]
    if "text" not in config:
      flags = [flag for flag in flags if ".conditioners." not in flag]
    with pytest.raises(CommandError, match=message):
      run(config, tmp_path / "x", 1, flags)

  cached = f"--config.data.latents={folder}"
  refused("glyphs_inpainting.py", "'mask' is made of images", cached)
  other = json.loads(pathlib.Path(folder, "manifest.json").read_text())
  other["first_stage"] = "0" * 64
  damaged = tmp_path / "strange"
  damaged.mkdir()
  (damaged / "manifest.json").write_text(json.dumps(other))
  cached = f"--config.data.latents={damaged}"
  refused("glyphs_text.py", "made with another first_stage", cached)
  with pytest.raises(CommandError, match="another batch"):
    write(stage, folder, "--dtype=float32", "--batch=16")


@pytest.mark.parametrize("line", [
  b"5", b"null", b"[]", b"{}", b'["0", []]', b"[0, [3]]", b"[0, null]",
  b"[1e999, []]", b"\xff\xfe", b"[" * 5000, b'[0, ["a"]', b"[0, [], 1]",
])  # fmt: skip
def test_blocks_after_a_foreign_line_are_made_again(tmp_path, line):
  path = tmp_path / "done_0_of_1.jsonl"
  blocks = [[0, ["a", None]], [8, []], [16, ["b"]]]
  lines = [json.dumps(block).encode() for block in blocks]
  path.write_bytes(b"\n".join([lines[0], line, *lines[1:], b""]))
  log = ProgressLog(str(path))
  assert log.blocks == blocks[:1] and log.keep([0, 8, 16]) == 1
  log.blocks += blocks[1:]
  log.write()
  assert ProgressLog(str(path)).blocks == blocks
  path.write_bytes(b"\n".join([*lines, line]))  # half a line, as when killed
  assert ProgressLog(str(path)).keep([0, 8, 16]) == 3
