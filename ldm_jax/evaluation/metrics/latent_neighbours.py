"""Latents half way to their nearest neighbours, whose images iFID compares."""

import numpy as np
from jaxtyping import Float, Int

BLOCK = 1024  # rows of the matrix of similarities


def interpolated_latents(
  latents: Float[np.ndarray, "n h w c"], fraction: float = 0.5
) -> Float[np.ndarray, "n h w c"]:
  """slerp(z_i, z_j; fraction), z_j the other latents most similar to z_i.

  Interpolated FID (Xu et al. 2026, arXiv 2603.05630) is the Frechet distance
  of the images decoded from these to the original ones. Similarity is the
  cosine of whole latents, the interpolation is spherical and half way, as by
  default in the authors' code. That code samples z_j from the ten nearest
  latents of a second set, the training images; here z_j is the nearest of the
  same set.

  Raises:
    ValueError: there are fewer than two latents.
  """
  rows = np.asarray(latents, np.float32).reshape(len(latents), -1)
  others = rows[nearest_by_cosine(rows)]
  lengths = _lengths(rows) * _lengths(others)
  cosine = (rows * others).sum(1, keepdims=True) / np.maximum(lengths, 1e-30)
  angle = np.arccos(np.clip(cosine, -1, 1))
  sine = np.sin(angle)
  is_straight = sine < 1e-6
  sine = np.where(is_straight, 1, sine)
  first = np.sin((1 - fraction) * angle) / sine
  second = np.sin(fraction * angle) / sine
  first = np.where(is_straight, 1 - fraction, first)
  second = np.where(is_straight, fraction, second)
  return (first * rows + second * others).reshape(latents.shape)


def nearest_by_cosine(
  rows: Float[np.ndarray, "n d"],
) -> Int[np.ndarray, " n"]:
  """The index of the other row with the largest cosine.

  Raises:
    ValueError: there are fewer than two rows.
  """
  if len(rows) < 2:
    raise ValueError(f"{len(rows)} latents have no neighbours; give 2 or more")
  unit = rows / np.maximum(_lengths(rows), 1e-30)
  found = []
  for begin in range(0, len(unit), BLOCK):
    similarity = unit[begin : begin + BLOCK] @ unit.T
    places = np.arange(len(similarity))
    similarity[places, begin + places] = -np.inf
    found.append(similarity.argmax(1))
  return np.concatenate(found)


def _lengths(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 1"]:
  return np.linalg.norm(rows, axis=1, keepdims=True)
