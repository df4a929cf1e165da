"""What is kept of a set of pictures to compare others with, on disk.

Read are our own files and ADM's (mu, sigma, mu_s, sigma_s): each an .npz of
plain arrays; no code in it is run.
"""

import dataclasses
import os
from typing import Any

import numpy as np

from ldm_jax.evaluation.frechet import Moments
from ldm_jax.evaluation.resizing import World
from ldm_jax.nn.inception import Features

WIDTHS = {"pooled": 2048, "spatial": 2023}
KIND = "ldm_jax statistics 1"


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Moments of Inception's features of one set.

  Attributes:
    count: of pictures, or None where a file does not say.
    world: how they were resized, or None where a file does not say.
    spatial: for sFID, or None where a file has none.
  """

  count: int | None
  world: World | None
  pooled: Moments
  spatial: Moments | None = None

  @classmethod
  def of(cls, features: Features, world: World) -> "Statistics":
    """Of a set that is here."""
    return cls(
      len(features.pooled),
      world,
      Moments.of(features.pooled),
      Moments.of(features.spatial),
    )

  def write(self, path: str) -> None:
    """As an .npz; never half of it."""
    arrays: dict[str, Any] = {
      "kind": KIND,
      "count": self.count,
      "world": self.world,
    }
    for name in WIDTHS:
      moments = getattr(self, name)
      arrays |= {f"{name}_mean": moments.mean}
      arrays |= {f"{name}_scatter": moments.scatter}
    part = path + ".part"
    with open(part, "wb") as file:
      np.savez(file, **arrays)
    os.replace(part, path)


def read_statistics(path: str) -> Statistics:
  """Of an .npz, ours or ADM's.

  Raises:
    ValueError: it is none of them, or damaged.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f"{path} holds no statistics: {error}") from None
  if str(arrays.get("kind")) == KIND:
    return _ours(path, arrays)
  return _foreign(path, arrays)


def _foreign(path: str, arrays: dict[str, np.ndarray]) -> Statistics:
  """From mu and sigma, and mu_s and sigma_s where they are."""
  found = {}
  for name, mean, covariance in (
    ("pooled", "mu", "sigma"),
    ("spatial", "mu_s", "sigma_s"),
  ):
    if mean in arrays and covariance in arrays:
      found[name] = _moments(path, name, arrays[mean], arrays[covariance], 2)
  if "pooled" not in found:
    raise ValueError(
      f"{path} has {', '.join(sorted(arrays)) or 'nothing'}; needed are mu and "
      "sigma, or what this package writes"
    )
  return Statistics(None, None, found["pooled"], found.get("spatial"))


def _ours(path: str, arrays: dict[str, np.ndarray]) -> Statistics:
  count, world = int(arrays["count"]), str(arrays["world"])
  if world not in ("legacy", "clean") or count < 2:
    raise ValueError(f"{path} is damaged: {count} pictures, world {world!r}")
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
  return Statistics(count, world, **found)


def _moments(
  path: str, name: str, mean: np.ndarray, covariance: np.ndarray, count: int
) -> Moments:
  width = WIDTHS[name]
  is_fit = mean.shape == (width,) and covariance.shape == (width, width)
  if (
    not is_fit
    or not np.isfinite(mean).all()
    or not (np.isfinite(covariance).all())
  ):
    raise ValueError(
      f"{path} is damaged, or of another network: {name} of shapes "
      f"{mean.shape} and {covariance.shape}; needed are finite numbers, "
      f"{width} and {width} x {width}"
    )
  scatter = covariance.astype(np.float64) * (count - 1)
  return Moments(count, mean.astype(np.float64), scatter)
