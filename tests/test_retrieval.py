"""Exact nearest neighbours, their files, and sources that read them."""

import concurrent.futures
import json
import os
import pathlib

import numpy as np
import pytest

import ldm_jax
from ldm_jax.cli import retrieve
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.sources.neighbours import Neighbours
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.metrics import nearest_neighbours
from ldm_jax.evaluation.metrics.nearest_neighbours import nearest
from ldm_jax.files.file_lock import OutputLocked, lock_folder, lock_output

RNG = np.random.default_rng(4)


def unit(*shape):
  rows = RNG.standard_normal(shape).astype(np.float32)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [7, 32, 1000])
def test_the_search_is_exact_for_any_block_size(monkeypatch, block):
  """Against float64 products of all pairs."""
  monkeypatch.setattr(nearest_neighbours, "BLOCK", block)
  monkeypatch.setattr(nearest_neighbours, "QUERIES", 5)
  rows, queries = unit(100, 16), unit(12, 16)
  products = queries.astype(np.float64) @ rows.T.astype(np.float64)
  expected = np.argsort(-products, axis=1)[:, :6]
  np.testing.assert_array_equal(nearest(queries, rows, 6), expected)


def test_a_row_is_its_own_neighbour_unless_left_out():
  rows = unit(50, 8)
  itself = np.arange(50)
  assert (nearest(rows, rows, 1)[:, 0] == itself).all()
  found = nearest(rows, rows, 3, itself)
  assert not (found == itself[:, None]).any()
  np.testing.assert_array_equal(found[:, :2], nearest(rows, rows, 3)[:, 1:])


def test_impossible_searches_are_refused():
  with pytest.raises(ValueError, match="k=6 neighbours of 5 rows"):
    nearest(unit(2, 4), unit(5, 4), 6)
  with pytest.raises(ValueError, match="one encoder"):
    nearest(unit(2, 4), unit(5, 3), 1)


def test_examples_hold_their_neighbours(tmp_path):
  rows, near = unit(6, 4), np.array([[1, 2, 3], [5, 0, 1]])
  np.save(tmp_path / "database.npy", rows)
  np.save(tmp_path / "train.npy", near)
  source = Neighbours(Glyphs(size=2), str(tmp_path), k=2)
  np.testing.assert_array_equal(source[1]["neighbours"], rows[[5, 0]])
  assert source[1]["caption"] == Glyphs(size=2)[1]["caption"]
  for wrong in (
    Neighbours(Glyphs(size=3), str(tmp_path), k=2),
    Neighbours(Glyphs(size=2), str(tmp_path), k=4),
    Neighbours(Glyphs(size=2), str(tmp_path), "validation"),
  ):
    with pytest.raises(ValueError, match="retrieve"):
      _ = wrong[0]


CONFIG = """
import dataclasses
from ldm_jax.config import Data, Experiment
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.sources.neighbours import Neighbours
from ldm_jax.training.denoiser import DenoiserTask

def get_config():
  near = lambda source, part: Neighbours(source, "unwritten", part)
  data = Data(
    near(Glyphs(size=30), "train"),
    near(Glyphs(split="validation", size=7), "validation"),
  )
  return Experiment(DenoiserTask(), data, 1)
"""


class _Thumbnails:
  """An encoder for the test: four by four means, centred, of unit length."""

  def __call__(self, images):
    rows = images.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4)).reshape(-1, 48)
    rows = rows - 128
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(
      np.float32
    )


def test_the_command_searches_for_a_config(tmp_path, monkeypatch, capsys):
  from ldm_jax.evaluation import retrieval

  monkeypatch.setattr(
    retrieval, "encoder_of", lambda folder, trust: (_Thumbnails(), None)
  )
  config = tmp_path / "near.py"
  config.write_text('"""A search."""\n' + CONFIG)
  out = tmp_path / "found"
  flags = ["--encoder=any", f"--out={out}", "--batch=8", "--k=3"]
  assert retrieve.main([f"--config={config}", *flags]) == 0
  names = [pathlib.Path(line).name for line in capsys.readouterr().out.split()]
  assert names == ["database.npy", "train.npy", "validation.npy"]
  rows = np.load(out / "database.npy")
  source = Glyphs(size=30)
  images = np.stack([source[i]["image"] for i in range(30)])
  np.testing.assert_allclose(rows, _Thumbnails()(images), atol=1e-6)
  near = np.load(out / "train.npy")
  assert near.shape == (30, 3) and np.load(out / "validation.npy").shape == (
    7,
    3,
  )
  assert not (near == np.arange(30)[:, None]).any()
  # An image of the database is its own nearest neighbour.
  from PIL import Image

  Image.fromarray(images[4]).save(tmp_path / "one.png")
  flags = [f"--image={tmp_path / 'one.png'}", f"--database={out}"]
  target = tmp_path / "rows.npy"
  assert retrieve.main([*flags, "--encoder=any", f"--out={target}"]) == 0
  np.testing.assert_array_equal(np.load(target)[0], rows[4])


@pytest.mark.parametrize(
  "flags, line",
  [
    ([], "give --config"),
    (["--config=a", "--image=b"], "give --config"),
    (["--image=b"], "nowhere"),
  ],
)
def test_a_wrong_request_is_one_line(tmp_path, flags, line):
  with pytest.raises(CommandError, match=line) as stop:
    retrieve.main([*flags, "--encoder=nowhere", f"--out={tmp_path / 'x'}"])
  assert stop.value.code == 2 and "\n" not in str(stop.value)


def test_an_encoder_must_be_an_image_encoder(tmp_path):
  config = {"_class_name": "AutoencoderKL"}
  (tmp_path / "config.json").write_text(json.dumps(config))
  flags = [f"--encoder={tmp_path}", f"--out={tmp_path / 'x'}", "--image=a"]
  with pytest.raises(CommandError):
    retrieve.main(flags)


@pytest.mark.parametrize("kind", ["retrieve", "retrieve one", "statistics"])
def test_an_output_that_another_writes_is_refused(tmp_path, kind):
  out = str(tmp_path / "out")
  call = {
    "retrieve": lambda: ldm_jax.retrieve(
      ldm_jax.RetrievalRequest("nowhere", out, "birds")
    ),
    "retrieve one": lambda: ldm_jax.retrieve(
      ldm_jax.RetrievalRequest("nowhere", out, image="a.png")
    ),
    "statistics": lambda: ldm_jax.evaluate(
      ldm_jax.EvaluationRequest(
        "nowhere", inception="a", resize="clean", write_statistics=out
      )
    ),
  }[kind]
  lock = lock_folder if kind == "retrieve" else lock_output
  with (
    lock(out),
    concurrent.futures.ThreadPoolExecutor(1) as other,
    pytest.raises(OutputLocked, match="is written by process"),
  ):
    other.submit(call).result()
  with pytest.raises(ConfigError, match="nowhere"):
    call()
  assert not os.listdir(tmp_path)
