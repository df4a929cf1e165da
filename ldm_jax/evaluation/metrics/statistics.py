"""What is kept of a set of pictures to compare others with, on disk.

Read are our own files, ADM's (mu, sigma, mu_s, sigma_s), each an .npz of plain
arrays, and torch-fidelity's .pt of mu and sigma; no code in them is run.
"""

import dataclasses
import os
import zipfile
import zlib
from typing import Any

import numpy as np

from ldm_jax.evaluation.metrics.frechet import Moments
from ldm_jax.evaluation.metrics.resizing import World
from ldm_jax.nn.encoders.inception import Features
from ldm_jax.weights.torch.torch_files import read_pickled

WIDTHS = {"pooled": 2048, "spatial": 2023}
KIND = "ldm_jax statistics 1"
SUFFIXES = (".npz", ".pt")
# What numpy raises for files that are no .npz, or no whole one.
DAMAGES = (OSError, ValueError, EOFError, TypeError, KeyError)
DAMAGES += (zipfile.BadZipFile, zlib.error)


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
  """Of an .npz, ours or ADM's, or of torch-fidelity's .pt.

  Raises:
    ValueError: it is none of them, or damaged.
    WeightsError: the same of a .pt.
  """
  if path.endswith(".pt"):
    held = read_pickled(path)
    arrays = {} if not isinstance(held, dict) else held
    arrays = {n: a for n, a in arrays.items() if isinstance(a, np.ndarray)}
    return _foreign(path, arrays, "legacy")  # its only world
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except DAMAGES as error:
    raise ValueError(f"{path} holds no statistics: {error}") from None
  if str(arrays.get("kind")) == KIND:
    return _ours(path, arrays)
  return _foreign(path, arrays, None)


def _foreign(
  path: str, arrays: dict[str, np.ndarray], world: World | None
) -> Statistics:
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
      f"{path} has {', '.join(sorted(map(str, arrays))) or 'no array'}; needed "
      "are mu and sigma, or what this package writes"
    )
  return Statistics(None, world, found["pooled"], found.get("spatial"))


def _ours(path: str, arrays: dict[str, np.ndarray]) -> Statistics:
  parts = [f"{n}_{part}" for n in WIDTHS for part in ("mean", "scatter")]
  if absent := {"count", "world", *parts} - arrays.keys():
    raise ValueError(f"{path} is damaged: it lacks {', '.join(sorted(absent))}")
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
