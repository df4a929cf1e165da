"""What two sets of pictures are to each other, each number by its name.

A name ends with the world of resizing it was made in: numbers of two worlds
cannot be compared.
"""

import numpy as np

from ldm_jax.evaluation.metrics.distribution_distances import (
  inception_score,
  kernel_distance,
  reach,
)
from ldm_jax.evaluation.metrics.frechet import Moments, frechet_distance
from ldm_jax.evaluation.metrics.resizing import World
from ldm_jax.evaluation.metrics.statistics import Statistics
from ldm_jax.nn.encoders.inception import Features

SUBSET = 1000  # of KID
SPLITS = 10  # of the inception score


def single_set_metrics(features: Features, world: World) -> dict[str, float]:
  """The inception score of a set, and its deviation over the splits."""
  splits = min(SPLITS, len(features.logits))
  mean, std = inception_score(features.logits, splits)
  return {f"is_{world}": mean, f"is_std_{world}": std}


def distribution_metrics(
  features: Features, against: Statistics, world: World
) -> dict[str, float]:
  """FID and, where it can be had, sFID, from moments alone.

  Raises:
    ValueError: there are fewer than two pictures, or the statistics are of
      pictures resized in another world.
  """
  if against.world not in (None, world):
    raise ValueError(
      f"statistics of the {against.world} world say nothing of pictures "
      f"resized in the {world} one; give --resize={against.world}"
    )
  told = {}
  for name, part in (("fid", "pooled"), ("sfid", "spatial")):
    other = getattr(against, part)
    if other is not None:
      ours = Moments.of(getattr(features, part))
      told[f"{name}_{world}"] = frechet_distance(ours, other)
  return told


def paired_metrics(
  features: Features, real: Features, world: World
) -> dict[str, float]:
  """KID of subsets of a thousand or of all, and who reaches whom (k = 3).

  Raises:
    ValueError: a set has three pictures or fewer.
  """
  ours, theirs = (np.asarray(rows.pooled) for rows in (features, real))
  size = min(SUBSET, len(ours), len(theirs))
  mean, std = kernel_distance(ours, theirs, size=size)
  told = {f"kid_{world}": mean, f"kid_std_{world}": std}
  found = reach(theirs, ours)
  return told | {f"{n}_{world}": v for n, v in found._asdict().items()}
