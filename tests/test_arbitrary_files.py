"""Any JSON value at any place of a file, and any bytes in any container.

What is read is read or refused with an exception of this package of one line.
A few examples run by default; `HYPOTHESIS_EXAMPLES=20000 pytest -m slow` runs
as many as it says.
"""

import copy
import dataclasses
import io
import json
import os
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm_jax.data.annotations import read_boxes, read_map
from ldm_jax.data.images import decode_image, image_size
from ldm_jax.data.sources.cached_latents import CachedLatents, read_manifest
from ldm_jax.data.sources.folder_captions import read_captions
from ldm_jax.data.sources.packed_examples import example
from ldm_jax.errors import ConfigError, DamagedFile, DataError, LdmJaxError
from ldm_jax.evaluation.metrics.statistics import read_statistics
from ldm_jax.files.numpy_files import read_npy, read_npz
from ldm_jax.run import Run
from ldm_jax.runtime.monitoring.metric_writer import read_metrics
from ldm_jax.sampling.metadata import parse_metadata, read_metadata
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.weights.files import read_tensors

MANY = int(os.environ.get("HYPOTHESIS_EXAMPLES", "20000"))
FEW = settings(
  max_examples=25,
  deadline=None,
  database=None,
  derandomize=True,
  suppress_health_check=list(HealthCheck),
)
NUMBERS = st.integers() | st.floats() | st.just(10**400)
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(max_size=6)
VALUES = st.recursive(
  PLAIN,
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3)
  ),
  max_leaves=6,
)


def png(**text):
  from PIL.PngImagePlugin import PngInfo

  info = PngInfo()
  for name, value in text.items():
    info.add_itxt(name, value)
  file = io.BytesIO()
  Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(
    file, "PNG", pnginfo=info
  )
  return file.getvalue()


PNG = png()
REQUEST = {
  field.name: field.default for field in dataclasses.fields(GenerationRequest)
} | {"replay": {"count": 1, "batch": 1, "row": 0}, "input_hashes": {}}
REQUEST |= {"prompt": "cat", "num": 1}


def in_folder(name, read):
  """A reader of a file of this name in a folder of its own."""

  def reader(content):
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, name)
      with open(path, "wb") as file:
        file.write(content)
      return read(folder, path)

  return reader


def captions(folder, path):
  import pathlib

  with open(os.path.join(folder, "a.png"), "wb") as file:
    file.write(PNG)
  names = [os.path.basename(path), "a.png"]
  return read_captions(pathlib.Path(folder), names, ["a.png"])["a.png"]


def settings_of(content):
  return in_folder(
    "a.png", lambda f, path: parse_metadata(read_metadata(path), {})
  )(png(ldm_jax=content.decode()))


BOXES = [{"class": 3, "box": [0.1, 0.2, 0.5, 0.9]}]
JSON_FILES = {
  "boxes": (BOXES, in_folder("a.json", lambda f, p: read_boxes(p))),
  "metadata.jsonl": (
    {"file_name": "a.png", "text": "x", "score": 1},
    in_folder("metadata.jsonl", captions),
  ),
  "json of a shard": (
    {"caption": "x", "text": "y", "label": 1, "score": 2.5},
    lambda content: example({"png": PNG, "json": content}, "x"),
  ),
  "manifest": (
    {
      "count": 0,
      "is_complete": True,
      "has_captions": False,
      "arrays": {"moments": ["float16", [2]]},
    },
    in_folder(
      "manifest.json", lambda f, p: (read_manifest(f), len(CachedLatents(f)))
    ),
  ),
  "metrics": (
    {"step": 1, "seconds": 2.0, "loss": 3.0},
    in_folder("metrics.jsonl", lambda f, p: read_metrics(f)),
  ),
  "run": (
    {"format": 2, "experiment": {"class": "Glyphs", "level": 0}, "batch": {}},
    in_folder("config.json", lambda f, p: (Run.exists(f), Run.open(f))),
  ),
  "settings of a PNG": (REQUEST, settings_of),
}


def numpy_file(save):
  file = io.BytesIO()
  save(file)
  return file.getvalue()


def safetensors():
  header = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
  return len(header).to_bytes(8, "little") + header + b"ab"


CONTAINERS = {
  "image": (PNG, lambda data: decode_image(io.BytesIO(data), "x")),
  "size": (PNG, lambda data: image_size(io.BytesIO(data))),
  "map": (PNG, in_folder("a.png", lambda f, p: read_map(p))),
  "npy": (
    numpy_file(lambda file: np.save(file, np.arange(3))),
    in_folder("a.npy", lambda f, p: read_npy(p, ConfigError)),
  ),
  "npz": (
    numpy_file(lambda file: np.savez(file, mu=np.arange(3))),
    in_folder("a.npz", lambda f, p: read_npz(p, ["mu"], DataError, 10**6)),
  ),
  "statistics": (
    numpy_file(lambda file: np.savez(file, kind="ldm_jax statistics 1")),
    in_folder("a.npz", lambda f, p: read_statistics(p)),
  ),
  "safetensors": (
    safetensors(),
    in_folder("a.safetensors", lambda f, p: dict(read_tensors(p))),
  ),
}


def places(tree, path=()):
  """Paths of all nodes of a JSON tree."""
  yield path
  items = tree.items() if isinstance(tree, dict) else ()
  items = enumerate(tree) if isinstance(tree, list) else items
  for name, below in items:
    yield from places(below, (*path, name))


def replaced(tree, path, value):
  if not path:
    return value
  tree = copy.deepcopy(tree)
  node = tree
  for name in path[:-1]:
    node = node[name]
  node[path[-1]] = value
  return tree


def is_read_or_refused(reader, content):
  try:
    reader(content)
  except LdmJaxError as error:
    assert "\n" not in str(error)
    assert not isinstance(error, DamagedFile)


def json_property(name, options):
  tree, reader = JSON_FILES[name]

  @options
  @given(st.sampled_from(list(places(tree))), VALUES)
  def holds(path, value):
    text = json.dumps(replaced(tree, path, value))
    is_read_or_refused(reader, text.encode())

  holds()


def container_property(name, options):
  whole, reader = CONTAINERS[name]
  edits = st.tuples(
    st.integers(0, len(whole)), st.integers(0, 9), st.binary(max_size=9)
  )

  @options
  @given(st.one_of(st.binary(max_size=80), st.lists(edits, max_size=4)))
  def holds(change):
    data = change if isinstance(change, bytes) else whole
    if data is whole:
      for start, length, new in change:
        data = data[:start] + new + data[start + length :]
    is_read_or_refused(reader, data)

  holds()


@pytest.mark.parametrize("name", JSON_FILES)
def test_any_json_value_at_any_place(name):
  json_property(name, FEW)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CONTAINERS)
def test_any_bytes_in_a_container(name):
  container_property(name, FEW)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [*JSON_FILES, *CONTAINERS])
def test_twenty_thousand_examples_of_files(name):
  many = settings(FEW, max_examples=MANY, derandomize=False)
  check = json_property if name in JSON_FILES else container_property
  check(name, many)
