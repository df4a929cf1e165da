"""Metrics of one or two sets of images, by name, from Inception's features.

A name ends with the resizing mode of the features, as in "fid_legacy": numbers
of different modes cannot be compared.
"""

import numpy as np

from ldm_jax.evaluation.metrics.distribution_distances import (
  inception_score,
  kernel_distance,
  precision_recall,
)
from ldm_jax.evaluation.metrics.frechet import Moments, frechet_distance
from ldm_jax.evaluation.metrics.resizing import ResizeMode
from ldm_jax.evaluation.metrics.statistics import Statistics
from ldm_jax.nn.encoders.inception import Features

SUBSET = 1000  # of KID
SPLITS = 10  # of the inception score


def single_set_metrics(
  features: Features, mode: ResizeMode
) -> dict[str, float]:
  """Inception score of one set: mean and standard deviation over splits."""
  splits = min(SPLITS, len(features.logits))
  mean, std = inception_score(features.logits, splits)
  return {f"is_{mode}": mean, f"is_std_{mode}": std}


def distribution_metrics(
  features: Features, reference: Statistics, mode: ResizeMode
) -> dict[str, float]:
  """FID and, where the statistics hold spatial features, sFID.

  Raises:
    ValueError: there are fewer than two images, or the statistics were made
      with another resizing mode.
  """
  if reference.mode not in (None, mode):
    raise ValueError(
      f"statistics of the resizing mode {reference.mode!r} cannot be compared "
      f"with features of mode {mode!r}; set resize to {reference.mode!r} "
      f"(--resize={reference.mode})"
    )
  metrics = {}
  for name, part in (("fid", "pooled"), ("sfid", "spatial")):
    theirs = getattr(reference, part)
    if theirs is not None:
      ours = Moments.of(getattr(features, part))
      metrics[f"{name}_{mode}"] = frechet_distance(ours, theirs)
  return metrics


def two_set_metrics(
  features: Features, real: Features, mode: ResizeMode
) -> dict[str, float]:
  """KID, precision, recall, density and coverage of two sets of features.

  KID takes subsets of 1,000, or of the smaller set if that has fewer; the
  other four use the third nearest neighbour (k = 3).

  Raises:
    ValueError: a set has three images or fewer.
  """
  ours, theirs = (np.asarray(rows.pooled) for rows in (features, real))
  size = min(SUBSET, len(ours), len(theirs))
  mean, std = kernel_distance(ours, theirs, size=size)
  metrics = {f"kid_{mode}": mean, f"kid_std_{mode}": std}
  found = precision_recall(theirs, ours)
  return metrics | {f"{n}_{mode}": v for n, v in found._asdict().items()}
