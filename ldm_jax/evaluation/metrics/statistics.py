"""Files of feature statistics: means and covariances of Inception's features.

Three formats are read: this package's .npz, ADM's .npz (mu, sigma, mu_s,
sigma_s), and torch-fidelity's .pt (mu, sigma). No code in them is executed.
"""

import dataclasses
from typing import Any

import numpy as np

from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.metrics.frechet import Moments
from ldm_jax.evaluation.metrics.resizing import ResizeMode
from ldm_jax.files.atomic_writes import replace_file
from ldm_jax.files.numpy_files import read_npz
from ldm_jax.nn.encoders.inception import Features
from ldm_jax.weights.torch.torch_files import read_pickled

WIDTHS = {"pooled": 2048, "spatial": 2023}
KIND = "ldm_jax statistics 1"
SUFFIXES = (".npz", ".pt")
MAX_BYTES = 2**29  # of all arrays; a float64 file of both widths has 134 MB


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Moments of Inception's features of one set.

  Attributes:
    count: number of images, or None where a file does not say.
    mode: how they were resized, or None where a file does not say.
    pooled: 2,048 features of pool3, for FID.
    spatial: 2,023 features of mixed_6d, for sFID; None where a file has none.
  """

  count: int | None
  mode: ResizeMode | None
  pooled: Moments
  spatial: Moments | None = None

  @classmethod
  def of(cls, features: Features, mode: ResizeMode) -> "Statistics":
    """Statistics of a set whose features are given."""
    return cls(
      len(features.pooled),
      mode,
      Moments.of(features.pooled),
      Moments.of(features.spatial),
    )

  def write(self, path: str) -> None:
    """Writes an .npz, which replaces `path` only when it is complete."""
    arrays: dict[str, Any] = {
      "kind": KIND,
      "count": self.count,
      "world": self.mode,  # the key of this file format
    }
    for name in WIDTHS:
      moments = getattr(self, name)
      arrays |= {f"{name}_mean": moments.mean}
      arrays |= {f"{name}_scatter": moments.scatter}
    with replace_file(path) as file:
      np.savez(file, **arrays)


_NAMES = (
  *("kind", "count", "world", "mu", "sigma", "mu_s", "sigma_s"),
  *(f"{name}_{part}" for name in WIDTHS for part in ("mean", "scatter")),
)


def read_statistics(path: str) -> Statistics:
  """Reads this package's or ADM's .npz, or torch-fidelity's .pt.

  Raises:
    ConfigError: the file is none of these, or damaged.
    WeightsError: a .pt cannot be read.
  """
  if path.endswith(".pt"):
    content = read_pickled(path)
    arrays = content if isinstance(content, dict) else {}
    arrays = {n: a for n, a in arrays.items() if isinstance(a, np.ndarray)}
    return _from_mu_sigma(path, arrays, "legacy")  # its only mode
  try:
    arrays = read_npz(path, _NAMES, ConfigError, MAX_BYTES)
  except ConfigError as error:
    raise ConfigError(f"{path} holds no statistics: {error}") from error
  if str(arrays.get("kind")) == KIND:
    return _from_moments(path, arrays)
  return _from_mu_sigma(path, arrays, None)


def _from_mu_sigma(
  path: str, arrays: dict[str, np.ndarray], mode: ResizeMode | None
) -> Statistics:
  """Statistics from mu and sigma, and mu_s and sigma_s where present."""
  found = {}
  for name, mean, covariance in (
    ("pooled", "mu", "sigma"),
    ("spatial", "mu_s", "sigma_s"),
  ):
    if mean in arrays and covariance in arrays:
      found[name] = _moments(path, name, arrays[mean], arrays[covariance], 2)
  if "pooled" not in found:
    names = ", ".join(sorted(map(str, arrays))) or "no array"
    raise ConfigError(
      f"{path} has {names}; expected mu and sigma, or a file of this package"
    )
  return Statistics(None, mode, found["pooled"], found.get("spatial"))


def _from_moments(path: str, arrays: dict[str, np.ndarray]) -> Statistics:
  """Statistics from this package's file."""
  parts = [f"{n}_{part}" for n in WIDTHS for part in ("mean", "scatter")]
  if absent := {"count", "world", *parts} - arrays.keys():
    raise ConfigError(
      f"{path} is damaged: it lacks {', '.join(sorted(absent))}"
    )
  if any(arrays[part].dtype.kind not in "iuf" for part in parts):
    raise ConfigError(f"{path} is damaged: expected numbers")
  count, mode = arrays["count"].tolist(), str(arrays["world"])
  if mode not in ("legacy", "clean") or type(count) is not int or count < 2:
    raise ConfigError(
      f"{path} is damaged: {count} images, resizing mode {mode!r}"
    )
  found = {
    name: _moments(
      path,
      name,
      arrays[f"{name}_mean"],
      arrays[f"{name}_scatter"] / (count - 1),
      count,
    )
    for name in WIDTHS
  }
  return Statistics(count, mode, **found)


def _moments(
  path: str, name: str, mean: np.ndarray, covariance: np.ndarray, count: int
) -> Moments:
  width = WIDTHS[name]
  is_fit = mean.shape == (width,) and covariance.shape == (width, width)
  is_fit &= {mean.dtype.kind, covariance.dtype.kind} <= set("iuf")
  if (
    not is_fit
    or not np.isfinite(mean).all()
    or not (np.isfinite(covariance).all())
  ):
    raise ConfigError(
      f"{path} is damaged, or of another network: {name} of shapes "
      f"{mean.shape} and {covariance.shape}; expected finite numbers, "
      f"{width} and {width} x {width}"
    )
  scatter = covariance.astype(np.float64) * (count - 1)
  return Moments(count, mean.astype(np.float64), scatter)
