"""How alike two sets of features are, beyond their first two moments."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Features = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]

SEED = 2020  # torch-fidelity's
BLOCK = 2048  # rows of distances at a time
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


class MeanAndStd(NamedTuple):
  """A mean over parts, and its standard deviation over them."""

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
      "give more pictures or a smaller subset"
    )
  rng = np.random.RandomState(SEED)
  found = []
  for _ in range(subsets):
    x = one[rng.choice(len(one), size, replace=False)].astype(np.float64)
    y = other[rng.choice(len(other), size, replace=False)].astype(np.float64)
    found.append(_unbiased(x, y))
  return MeanAndStd(float(np.mean(found)), float(np.std(found)))


def _unbiased(x: np.ndarray, y: np.ndarray) -> float:
  """MMD^2 without the pairs of a row with itself."""
  kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
  n = len(x)
  apart = lambda k: (k.sum() - np.trace(k)) / (n * (n - 1))
  return apart(kernel(x, x)) + apart(kernel(y, y)) - 2 * kernel(x, y).mean()


def cmmd(one: Features, other: Others) -> float:
  """1000 MMD^2 of a Gaussian kernel of width 10 on embeddings of unit length,
  every pair counted (Jayasumana et al. 2024, eq. 4, and their code)."""
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  x, y = (unit(np.asarray(rows, np.float64)) for rows in (one, other))

  def kernel(a: np.ndarray, b: np.ndarray) -> float:
    sums = (
      np.exp(-square / (2 * CMMD_SIGMA**2)).sum() for square in _squares(a, b)
    )
    return sum(sums) / (len(a) * len(b))

  return CMMD_SCALE * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))


def inception_score(
  logits: Float[np.ndarray, "n classes"], splits: int = 10
) -> MeanAndStd:
  """exp E KL(p(y|x) || p(y)) over shuffled splits (Salimans et al. 2016)."""
  if len(logits) < splits:
    raise ValueError(f"{len(logits)} pictures make no {splits} splits")
  rng = np.random.RandomState(SEED)
  rows = np.asarray(logits, np.float64)[rng.permutation(len(logits))]
  rows = rows - rows.max(1, keepdims=True)
  told = rows - np.log(np.exp(rows).sum(1, keepdims=True))
  scores = []
  for i in range(splits):
    part = told[i * len(told) // splits : (i + 1) * len(told) // splits]
    mean = np.log(np.exp(part).mean(0, keepdims=True))
    each = (np.exp(part) * (part - mean)).sum(1)
    scores.append(np.exp(each.mean()))
  return MeanAndStd(float(np.mean(scores)), float(np.std(scores)))


class Coverage(NamedTuple):
  """Two pairs that say how good and how varied samples are.

  Attributes:
    precision, recall: the share of samples that lie within the real ones'
      reach, and of real ones within the samples' (Kynkaanniemi et al. 2019).
    density, coverage: how many real ones reach a sample, over k; the share of
      real ones that reach one (Naeem et al. 2020).
  """

  precision: float
  recall: float
  density: float
  coverage: float


def reach(real: Features, samples: Others, k: int = 3) -> Coverage:
  """Every picture reaches as far as its k-th neighbour of its own set.

  Raises:
    ValueError: a set has no k-th neighbours.
  """
  if min(len(real), len(samples)) <= k:
    raise ValueError(f"{len(real)} and {len(samples)} features; k is {k}")
  near, far = (_radii(rows, k) for rows in (real, samples))
  hits = np.zeros(len(samples))
  recalled = covered = 0
  begin = 0
  for square in _squares(real, samples):
    rows = slice(begin, begin + len(square))
    inside = square <= near[rows, None]
    hits += inside.sum(0)
    covered += int(inside.any(1).sum())
    recalled += int((square <= far[None]).any(1).sum())
    begin += len(square)
  return Coverage(
    precision=float((hits > 0).mean()),
    recall=recalled / len(real),
    density=float(hits.mean() / k),
    coverage=covered / len(real),
  )


def closest(
  rows: Features, others: Others
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
  """How far each row is from the nearest of the others, and which that is."""
  places, squares = [], []
  for square in _squares(rows, others):
    places.append(square.argmin(1))
    squares.append(square.min(1))
  return np.sqrt(np.concatenate(squares)), np.concatenate(places)


def _radii(rows: Features, k: int) -> Float[np.ndarray, " n"]:
  """Squared distances to the k-th neighbour; a row is none of its own."""
  return np.concatenate(
    [np.partition(square, k, axis=1)[:, k] for square in _squares(rows, rows)]
  )


def _squares(a: Features, b: Others) -> Iterator[np.ndarray]:
  """Squared distances of some rows of a from all of b, block by block."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  lengths = np.square(b).sum(1)
  for begin in range(0, len(a), BLOCK):
    part = a[begin : begin + BLOCK]
    square = np.square(part).sum(1)[:, None] + lengths - 2 * part @ b.T
    yield np.maximum(square, 0)
