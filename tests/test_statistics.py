"""Files of feature statistics: ldm_jax's, ADM's and torch-fidelity's."""

import pickle

import numpy as np
import pytest
from torch_files import write

from ldm_jax.evaluation.metrics.statistics import (
  WIDTHS,
  Statistics,
  read_statistics,
)
from ldm_jax.nn.encoders.inception import Features


@pytest.fixture(scope="module")
def features():
  rng = np.random.default_rng(0)
  rows = {
    name: rng.standard_normal((9, width)).astype(np.float32)
    for name, width in WIDTHS.items()
  }
  return Features(None, None, None, rows["pooled"], rows["spatial"], None)


def test_our_file_is_read_as_it_was_written(features, tmp_path):
  path = str(tmp_path / "set.npz")
  whole = Statistics.of(features, "clean")
  whole.write(path)
  found = read_statistics(path)
  assert (found.count, found.mode) == (9, "clean")
  for name in WIDTHS:
    ours, theirs = getattr(found, name), getattr(whole, name)
    np.testing.assert_array_equal(ours.mean, theirs.mean)
    np.testing.assert_allclose(ours.covariance, theirs.covariance, rtol=1e-12)
  assert [p.name for p in tmp_path.iterdir()] == ["set.npz"]


def test_adms_file_has_covariances_and_no_count(features, tmp_path):
  path = tmp_path / "adm.npz"
  rows = features.pooled.astype(np.float64)
  mu, sigma = rows.mean(0), np.cov(rows, rowvar=False)
  np.savez(path, arr_0=np.zeros((1, 8, 8, 3), np.uint8), mu=mu, sigma=sigma)
  found = read_statistics(str(path))
  assert found.count is found.mode is found.spatial is None
  np.testing.assert_allclose(found.pooled.mean, mu, rtol=1e-12)
  np.testing.assert_allclose(found.pooled.covariance, sigma, atol=1e-12)


def test_torch_fidelitys_file_is_of_the_legacy_mode(features, tmp_path):
  path = tmp_path / "set-inception-v3-compat-stat-fid-2048.pt"
  rows = features.pooled.astype(np.float64)
  mu, sigma = rows.mean(0), np.cov(rows, rowvar=False)
  write("zip", path, {"mu": mu, "sigma": sigma})
  found = read_statistics(str(path))
  assert (found.count, found.mode, found.spatial) == (None, "legacy", None)
  np.testing.assert_array_equal(found.pooled.mean, mu)
  np.testing.assert_allclose(found.pooled.covariance, sigma, atol=1e-12)
  write("zip", path, ["mu"])
  with pytest.raises(ValueError, match="no array; expected mu"):
    read_statistics(str(path))


def test_a_damaged_file_is_one_line(features, tmp_path):
  path = tmp_path / "set.npz"
  Statistics.of(features, "clean").write(str(path))
  whole = path.read_bytes()
  middle = len(whole) // 2
  changed = whole[:middle] + bytes(64) + whole[middle + 64 :]
  for damaged in (whole[:-100], whole[:middle], changed):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="holds no statistics") as refused:
      read_statistics(str(path))
    assert "\n" not in str(refused.value)
  with open(path, "wb") as file:
    np.save(file, np.zeros(3))
  with pytest.raises(ValueError, match="holds no statistics"):
    read_statistics(str(path))


class Attack:
  """Creates a file if it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


@pytest.mark.parametrize(
  "arrays, message",
  [
    ({"arr_0": np.zeros(3)}, "expected mu"),
    ({"mu": np.zeros(5), "sigma": np.zeros((5, 5))}, "of another network"),
    (
      {"mu": np.full(2048, np.nan), "sigma": np.zeros((2048, 2048))},
      "expected finite numbers",
    ),
    ({"kind": "ldm_jax statistics 1", "count": 1, "world": "clean"}, "damaged"),
  ],
)
def test_other_arrays_are_refused(arrays, message, tmp_path):
  np.savez(tmp_path / "x.npz", **arrays)
  with pytest.raises(ValueError, match=message):
    read_statistics(str(tmp_path / "x.npz"))


def test_no_code_in_a_file_is_executed(tmp_path):
  sentinel, path = tmp_path / "sentinel", tmp_path / "x.npz"
  attack = np.empty(1, object)
  attack[0] = Attack(sentinel)
  np.savez(path, mu=attack, sigma=attack)
  with pytest.raises(ValueError, match="holds no statistics"):
    read_statistics(str(path))
  path.write_bytes(pickle.dumps(Attack(sentinel)))
  with pytest.raises(ValueError, match="holds no statistics"):
    read_statistics(str(path))
  with pytest.raises(ValueError, match="holds no statistics"):
    read_statistics(str(tmp_path / "nowhere.npz"))
  assert not sentinel.exists()
