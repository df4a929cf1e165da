"""Live comparisons with torch-fidelity, on random weights in its own file."""

import collections
import sys
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.evaluation.metrics import (
  comparison,
  distribution_distances,
  resizing,
)
from ldm_jax.evaluation.metrics.features import Extractor
from ldm_jax.evaluation.metrics.frechet import Moments, frechet_distance
from ldm_jax.evaluation.metrics.statistics import Statistics
from ldm_jax.nn.encoders.inception import IMAGE_SIZE, Inception
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.weights.files import read_torch
from ldm_jax.weights.naming.convert import convert, read_table

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

TAPS = {"64": 0, "192": 1, "768": 2, "2048": 3, "logits_unbiased": 5}


@pytest.fixture(scope="module")
def fidelity():
  """The package without torchvision, which it does not need here."""
  absent = [
    "torchvision",
    "torchvision.datasets",
    "torchvision.transforms",
    "torchvision.transforms.functional",
  ]
  missing = [name for name in absent if name not in sys.modules]
  sys.modules |= dict.fromkeys(missing, unittest.mock.MagicMock())
  yield pytest.importorskip("torch_fidelity")
  for name in missing:
    del sys.modules[name]


@pytest.fixture(scope="module")
def file(tmp_path_factory, fidelity):
  """Random weights under the names of the published file, in its old format."""
  from torch_fidelity import feature_extractor_inceptionv3 as theirs

  path = tmp_path_factory.mktemp("inception") / "weights.pth"
  generator = torch.Generator().manual_seed(0)
  tensors = collections.OrderedDict()
  loaded = {}

  def load(self, state, *_, **__):
    loaded["names"] = {k: v.shape for k, v in self.state_dict().items()}

  whole = torch.nn.Module.load_state_dict
  torch.nn.Module.load_state_dict = load
  torch.save({}, path)
  try:
    theirs.FeatureExtractorInceptionV3("x", ["2048"], str(path))
  finally:
    torch.nn.Module.load_state_dict = whole
  for name, shape in loaded["names"].items():
    values = torch.randn(shape, generator=generator)
    if name.endswith("conv.weight") or name == "fc.weight":
      values *= (2 / np.prod(shape[1:])) ** 0.5
    elif name.endswith("running_var"):
      values = 0.5 + torch.rand(shape, generator=generator)
    elif name.endswith("bn.weight"):
      values = 1 + 0.1 * values
    elif name.endswith("num_batches_tracked"):
      values = torch.tensor(7)
    else:
      values *= 0.1
    tensors[name] = values
  torch.save(tensors, path, _use_new_zipfile_serialization=False)
  return str(path)


def image_batch(size, count=4, seed=0):
  rng = np.random.default_rng([seed, size])
  small = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
  large = np.kron(small, np.ones((1, size // 8, size // 8, 1), np.uint8))
  noise = rng.integers(0, 40, large.shape)
  return np.clip(large + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def ours(file):
  variables = convert(read_table("inception"), read_torch(file))

  @jax.jit
  def features(images):
    x = resizing.legacy(images, IMAGE_SIZE)
    return Inception().apply(variables, (x - 128) / 128)

  return lambda images: [np.asarray(f) for f in features(jnp.asarray(images))]


@pytest.fixture(scope="module")
def theirs(file, fidelity):
  from torch_fidelity.feature_extractor_inceptionv3 import (
    FeatureExtractorInceptionV3,
  )

  network = FeatureExtractorInceptionV3("x", list(TAPS), file).eval()
  activations = []
  network.Mixed_6d.branch1x1.register_forward_hook(
    lambda *arguments: activations.append(arguments[-1])
  )

  @torch.no_grad()
  def features(images):
    activations.clear()
    outputs = network(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    # For sFID, which torch-fidelity lacks: 7 channels at 17 x 17 positions.
    return [
      *outputs,
      activations[0][:, :7].permute(0, 2, 3, 1).reshape(len(images), -1),
    ]

  return lambda images: [np.asarray(f) for f in features(images)]


@pytest.mark.parametrize("size", [32, 64, 256, 512])
def test_features_are_torch_fidelitys(ours, theirs, size):
  images = image_batch(size)
  found = ours(images)
  taps = [*TAPS.items(), ("spatial", 4)]
  for (name, index), expected in zip(taps, theirs(images), strict=True):
    expected = expected.reshape(len(images), -1)
    error = np.abs(found[index] - expected).max() / expected.std()
    # Single positions; the others are means over an image.
    assert error < (2e-5 if name == "spatial" else 1e-5), (name, error)


def test_scores_of_images_are_torch_fidelitys(file, theirs, fidelity):
  """256 images a set, through both networks: fewer than features."""
  from torch_fidelity.metric_fid import (
    fid_features_to_statistics,
    fid_statistics_to_metric,
  )
  from torch_fidelity.metric_isc import isc_features_to_metric
  from torch_fidelity.metric_kid import kid_features_to_metric
  from torch_fidelity.metric_prc import prc_features_to_metric

  sets = [image_batch(32, 256, seed) for seed in (1, 2)]
  sets[1] = sets[1] // 2 + 60
  variables = convert(read_table("inception"), read_torch(file))
  extract = Extractor(variables, MeshShape().build(jax.devices()[:1]))
  ours = [extract([images]) for images in sets]
  found = comparison.single_set_metrics(ours[0], "legacy")
  found |= comparison.distribution_metrics(
    ours[0], Statistics.of(ours[1], "legacy"), "legacy"
  )
  found |= comparison.two_set_metrics(ours[0], ours[1], "legacy")
  blocks = [
    [theirs(images[i : i + 64]) for i in range(0, 256, 64)] for images in sets
  ]
  pooled, logits = (
    [
      torch.from_numpy(np.concatenate([b[k] for b in parts]).reshape(256, -1))
      for parts in blocks
    ]
    for k in (3, 4)
  )
  moments = [fid_features_to_statistics(rows) for rows in pooled]
  expected = fid_statistics_to_metric(*moments, verbose=False)
  np.testing.assert_allclose(
    found["fid_legacy"], expected["frechet_inception_distance"], rtol=1e-4
  )
  expected = kid_features_to_metric(*pooled, kid_subset_size=256, verbose=False)
  expected = expected["kernel_inception_distance_mean"]
  np.testing.assert_allclose(found["kid_legacy"], expected, rtol=1e-5)
  expected = isc_features_to_metric(logits[0])["inception_score_mean"]
  np.testing.assert_allclose(found["is_legacy"], expected, rtol=1e-4)
  expected = prc_features_to_metric(*pooled, verbose=False)
  for name in ("precision", "recall"):
    assert found[f"{name}_legacy"] == expected[name]


@pytest.mark.parametrize("size", [32, 300, 512])
def test_resizing_is_torch_fidelitys(fidelity, size):
  from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x as theirs,
  )

  board = np.indices((size, size)).sum(0) % 2 * 255
  board = np.repeat(board[None, ..., None], 3, -1).astype(np.uint8)
  for images in (board, image_batch(size // 8 * 8)):
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    expected = theirs(x, size=(IMAGE_SIZE, IMAGE_SIZE), align_corners=False)
    found = resizing.legacy(jnp.asarray(images), IMAGE_SIZE)
    expected = expected.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected, atol=255e-5)


def test_scores_are_torch_fidelitys(fidelity):
  from torch_fidelity.metric_fid import (
    fid_features_to_statistics,
    fid_statistics_to_metric,
  )
  from torch_fidelity.metric_isc import isc_features_to_metric
  from torch_fidelity.metric_kid import kid_features_to_metric
  from torch_fidelity.metric_prc import prc_features_to_metric

  rng = np.random.default_rng(0)
  mix = rng.normal(size=(64, 64)) / 8
  x, y = (rng.normal(size=(256, 64)) @ mix + 0.3 * k for k in (0, 1))
  x, y = x.astype(np.float32), y.astype(np.float32)
  tensors = [torch.from_numpy(rows) for rows in (x, y)]
  moments = [fid_features_to_statistics(rows) for rows in tensors]
  expected = fid_statistics_to_metric(*moments, verbose=False)
  found = frechet_distance(Moments.of(x), Moments.of(y))
  expected = expected["frechet_inception_distance"]
  np.testing.assert_allclose(found, expected, rtol=1e-5)

  expected = kid_features_to_metric(
    *tensors, kid_subset_size=100, verbose=False
  )
  found = distribution_distances.kernel_distance(x, y, 100, 100)
  np.testing.assert_allclose(found, tuple(expected.values()), rtol=1e-5)

  logits = (3 * rng.normal(size=(256, 20))).astype(np.float32)
  expected = isc_features_to_metric(torch.from_numpy(logits))
  found = distribution_distances.inception_score(logits)
  np.testing.assert_allclose(found, tuple(expected.values()), rtol=1e-4)

  # What is generated comes first there.
  expected = prc_features_to_metric(*tensors[::-1], verbose=False)
  found = distribution_distances.precision_recall(x, y)
  names = ("precision", "recall")
  assert [getattr(found, n) for n in names] == [expected[n] for n in names]
