"""Inception's features: read from the published file, equal on any mesh."""

import jax
import numpy as np
import pytest
from torch_files import tensor, write

from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.evaluation.metrics.features import Extractor
from ldm_jax.nn.encoders.inception import IMAGE_SIZE, Inception
from ldm_jax.pretrained.metric_networks.inception import inception
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.weights.naming.convert import read_table, revert

WIDTHS = (64, 192, 768, 2048, 2023, 1008)


@pytest.fixture(scope="module")
def variables():
  """Random, of unit gain, stored moments too."""
  image = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
  shapes = jax.eval_shape(Inception().init, jax.random.key(0), image)
  rng = np.random.default_rng(0)

  def random(path, leaf):
    name = path[-1].key
    if name in ("kernel", "fc"):
      size = (2 / np.prod(leaf.shape[:-1])) ** 0.5
      return size * rng.standard_normal(leaf.shape).astype(np.float32)
    if name in ("var", "scale"):
      return rng.uniform(0.8, 1.2, leaf.shape).astype(np.float32)
    return 0.1 * rng.standard_normal(leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(random, shapes)


@pytest.fixture(scope="module")
def path(variables, tmp_path_factory):
  """The published file's names, in its old format, all 566 of them."""
  tensors = revert(read_table("inception"), variables)
  counts = {n for n in tensors if n.endswith("running_var")}
  for name in counts:
    counter = name.replace("running_var", "num_batches_tracked")
    tensors[counter] = np.array(1)
  tensors["fc.bias"] = np.zeros(1008, np.float32)
  assert len(tensors) == 566
  path = tmp_path_factory.mktemp("inception") / "weights.pth"
  whole = {n: tensor(np.ascontiguousarray(a)) for n, a in tensors.items()}
  write("legacy", path, whole)
  return path


def test_the_file_is_read_as_it_was_written(variables, path):
  jax.tree.map(np.testing.assert_array_equal, inception(str(path)), variables)
  assert sum(map(np.size, jax.tree.leaves(variables))) == 23_884_384


def test_a_missing_file_or_tensor_is_named(tmp_path):
  with pytest.raises(
    ConfigError, match=r"expected torch-fidelity's .*6726825d"
  ):
    inception(str(tmp_path / "nowhere.pth"))
  write("zip", tmp_path / "other.pth", {"a": tensor(np.zeros(3, np.float32))})
  with pytest.raises(WeightsError, match="Conv2d_1a_3x3"):
    inception(str(tmp_path / "other.pth"))


@pytest.mark.slow
def test_features_do_not_depend_on_batches_or_devices(variables):
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (17, 40, 40, 3), np.uint8)
  found = []
  for devices, batch, blocks in ((1, 1, 17), (1, 16, 1), (8, 16, 2)):
    sharding = MeshShape().build(jax.devices()[:devices])
    extract = Extractor(variables, sharding, batch=batch)
    found.append(extract(np.array_split(images, blocks)))
  for other in found[1:]:
    for one, two, width in zip(found[0], other, WIDTHS, strict=True):
      assert one.shape == (17, width)
      # A logit sums 2,048 products, in another order for another batch.
      near = 1e-5 if width == WIDTHS[-1] else 1e-6
      np.testing.assert_allclose(one, two, rtol=0, atol=near * one.std() + near)
  legacy, clean = (
    Extractor(variables, MeshShape().build(), world, 16)([images])
    for world in ("legacy", "clean")
  )
  assert np.abs(legacy.pooled - clean.pooled).max() > 1e-3
  with pytest.raises(ValueError, match="to take features of"):
    Extractor(variables, MeshShape().build())([])
