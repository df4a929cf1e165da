"""Frechet distance of two sets of features, in float64.

scipy.linalg.sqrtm is not used: it is slow, and its answer is not always real.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

BLOCK = 4096  # rows


@dataclasses.dataclass(frozen=True)
class Moments:
  """Number, mean, and sum of outer products about the mean, of some rows.

  Moments of parts add up to those of the whole, in any order.
  """

  count: int
  mean: Float[np.ndarray, " d"]
  scatter: Float[np.ndarray, "d d"]

  @classmethod
  def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
    """Moments of all rows, in two passes; one block is copied at a time."""
    if not len(features):
      raise ValueError("no features to take moments of")
    mean = features.mean(0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for begin in range(0, len(features), BLOCK):
      centred = features[begin : begin + BLOCK] - mean
      scatter += centred.T @ centred
    return cls(len(features), mean, scatter)

  def __add__(self, other: "Moments") -> "Moments":
    """Moments of both sets together (Chan et al. 1983, eq. 1.5)."""
    count = self.count + other.count
    shift = other.mean - self.mean
    weight = self.count * other.count / count
    return Moments(
      count,
      self.mean + shift * (other.count / count),
      self.scatter + other.scatter + weight * np.outer(shift, shift),
    )

  @property
  def covariance(self) -> Float[np.ndarray, "d d"]:
    """The unbiased covariance, as of np.cov."""
    return self.scatter / (self.count - 1)


def frechet_distance(one: Moments, other: Moments) -> float:
  """|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^1/2)  (Dowson and Landau 1982).

  With symmetric roots R1 and R2 of both covariances, the trace of the root is
  the sum of the singular values of R1 R2; computed so, no digits are lost by
  squaring.

  Raises:
    ValueError: the features are of different widths, or fewer than two.
  """
  if one.mean.shape != other.mean.shape or min(one.count, other.count) < 2:
    raise ValueError(
      f"{one.count} features of width {len(one.mean)} and {other.count} of "
      f"{len(other.mean)}; expected two or more of the same width"
    )
  first, second = one.covariance, other.covariance
  product = _root(first) @ _root(second)
  trace = np.linalg.svd(product, compute_uv=False).sum()
  shift = one.mean - other.mean
  return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * trace)


def _root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
  """The symmetric square root; eigenvalues below 0 are rounding errors."""
  values, vectors = np.linalg.eigh(covariance)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
