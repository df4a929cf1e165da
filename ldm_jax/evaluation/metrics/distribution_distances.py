"""Distances between two sets of features, beyond their first two moments."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Features = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]

SEED = 2020  # torch-fidelity's
BLOCK = 2048  # rows of a distance matrix that are computed at a time
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


class MeanAndStd(NamedTuple):
  """A mean over subsets or splits, and the standard deviation over them."""

  mean: float
  std: float


def kernel_distance(
  one: Features, other: Others, subsets: int = 100, size: int = 1000
) -> MeanAndStd:
  """KID: the unbiased squared MMD of the kernel (x.y / d + 1)^3, over random
  subsets (Binkowski et al. 2018, section 4).

  Raises:
    ValueError: a set is smaller than a subset.
  """
  if min(len(one), len(other)) < size:
    raise ValueError(
      f"{len(one)} and {len(other)} features; KID takes subsets of {size}: "
      "give more images or a smaller subset"
    )
  rng = np.random.RandomState(SEED)
  found = []
  for _ in range(subsets):
    x = one[rng.choice(len(one), size, replace=False)].astype(np.float64)
    y = other[rng.choice(len(other), size, replace=False)].astype(np.float64)
    found.append(_unbiased_mmd(x, y))
  return MeanAndStd(float(np.mean(found)), float(np.std(found)))


def _unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
  """MMD^2 without the pairs of a row with itself."""
  kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
  n = len(x)
  off_diagonal = lambda k: (k.sum() - np.trace(k)) / (n * (n - 1))
  within = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y))
  return within - 2 * kernel(x, y).mean()


def cmmd(one: Features, other: Others) -> float:
  """1000 MMD^2 of a Gaussian kernel of width 10 on embeddings of unit length,
  every pair counted (Jayasumana et al. 2024, eq. 4, and their code)."""
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  x, y = (unit(np.asarray(rows, np.float64)) for rows in (one, other))

  def kernel(a: np.ndarray, b: np.ndarray) -> float:
    sums = (
      np.exp(-square / (2 * CMMD_SIGMA**2)).sum()
      for square in _squared_distances(a, b)
    )
    return sum(sums) / (len(a) * len(b))

  return CMMD_SCALE * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))


def inception_score(
  logits: Float[np.ndarray, "n classes"], splits: int = 10
) -> MeanAndStd:
  """exp E KL(p(y|x) || p(y)) over shuffled splits (Salimans et al. 2016)."""
  if len(logits) < splits:
    raise ValueError(f"{len(logits)} images cannot make {splits} splits")
  rng = np.random.RandomState(SEED)
  rows = np.asarray(logits, np.float64)[rng.permutation(len(logits))]
  rows = rows - rows.max(1, keepdims=True)
  log_p = rows - np.log(np.exp(rows).sum(1, keepdims=True))
  scores = []
  for i in range(splits):
    part = log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits]
    marginal = np.log(np.exp(part).mean(0, keepdims=True))
    divergence = (np.exp(part) * (part - marginal)).sum(1)
    scores.append(np.exp(divergence.mean()))
  return MeanAndStd(float(np.mean(scores)), float(np.std(scores)))


class PrecisionRecall(NamedTuple):
  """Fidelity and diversity by nearest neighbours, two measures of each.

  Attributes:
    precision: fraction of samples within the k-th neighbour distance of a
      real image (Kynkaanniemi et al. 2019, eq. 3).
    recall: fraction of real images within that of a sample (eq. 4).
    density: mean number of real neighbourhoods that contain a sample, over k
      (Naeem et al. 2020, eq. 4).
    coverage: fraction of real neighbourhoods that contain a sample (eq. 5).
  """

  precision: float
  recall: float
  density: float
  coverage: float


def precision_recall(
  real: Features, samples: Others, k: int = 3
) -> PrecisionRecall:
  """Precision, recall, density and coverage.

  The neighbourhood of an image is the ball whose radius is the distance to
  its k-th nearest neighbour in its own set.

  Raises:
    ValueError: a set has no k-th neighbours.
  """
  if min(len(real), len(samples)) <= k:
    raise ValueError(
      f"{len(real)} and {len(samples)} features, but k is {k}; give more images"
    )
  real_radii, sample_radii = (_squared_radii(r, k) for r in (real, samples))
  hits = np.zeros(len(samples))
  recalled = covered = 0
  begin = 0
  for square in _squared_distances(real, samples):
    rows = slice(begin, begin + len(square))
    inside = square <= real_radii[rows, None]
    hits += inside.sum(0)
    covered += int(inside.any(1).sum())
    recalled += int((square <= sample_radii[None]).any(1).sum())
    begin += len(square)
  return PrecisionRecall(
    precision=float((hits > 0).mean()),
    recall=recalled / len(real),
    density=float(hits.mean() / k),
    coverage=covered / len(real),
  )


def nearest_distances(
  rows: Features, others: Others
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
  """For each row the distance to the nearest of the others, and its index."""
  indices, squares = [], []
  for square in _squared_distances(rows, others):
    indices.append(square.argmin(1))
    squares.append(square.min(1))
  return np.sqrt(np.concatenate(squares)), np.concatenate(indices)


def _squared_radii(rows: Features, k: int) -> Float[np.ndarray, " n"]:
  """Squared distances to the k-th neighbour, the row itself not counted."""
  return np.concatenate(
    [
      np.partition(square, k, axis=1)[:, k]
      for square in _squared_distances(rows, rows)
    ]
  )


def _squared_distances(a: Features, b: Others) -> Iterator[np.ndarray]:
  """Squared distances of the rows of a to all rows of b, block by block."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  lengths = np.square(b).sum(1)
  for begin in range(0, len(a), BLOCK):
    part = a[begin : begin + BLOCK]
    square = np.square(part).sum(1)[:, None] + lengths - 2 * part @ b.T
    yield np.maximum(square, 0)
