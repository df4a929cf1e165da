"""All metrics of one comparison of images."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.contact_sheets import ContactSheets, FeaturesByMode
from ldm_jax.evaluation.custom_metrics import (
  Metric,
  apply_metric,
  takes_features,
)
from ldm_jax.evaluation.image_sets import ImageSet
from ldm_jax.evaluation.metric_networks import MetricNetworks, PerImage
from ldm_jax.evaluation.metrics import comparison
from ldm_jax.evaluation.metrics.distribution_distances import cmmd
from ldm_jax.evaluation.metrics.frechet import Moments, frechet_distance
from ldm_jax.evaluation.metrics.statistics import Statistics


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What is measured.

  Attributes:
    reference: images, statistics, or None.
    is_paired: whether samples[i] is compared with reference[i].
    settings: how the samples were made, by name.
    is_reconstruction: whether samples are reconstructions.
    captions: of the samples; empty if one has none.
    memorisation: held-out examples and training images, to compare distances
      of the samples with; or None.
  """

  samples: ImageSet
  reference: ImageSet | Statistics | None
  is_paired: bool
  settings: dict[str, Any]
  is_reconstruction: bool = False
  captions: Sequence[str] = ()
  memorisation: tuple[ImageSet, ImageSet] | None = None

  @property
  def reference_images(self) -> ImageSet | None:
    """The reference, if it is a set of images."""
    return self.reference if isinstance(self.reference, ImageSet) else None


def measure(
  case: Comparison,
  networks: MetricNetworks,
  features: FeaturesByMode,
  sheets: ContactSheets,
  custom: Sequence[Metric] = (),
) -> dict[str, float]:
  """Every metric that the networks allow; writes contact sheets.

  Args:
    features: of the samples.
    custom: the user's metrics.
  """
  real = None
  if case.reference_images is not None:
    real = networks.features(case.reference_images)
  metrics = _inception_metrics(case, features, real)
  if networks.has_dino and case.reference_images is not None:
    both = case.samples, case.reference_images
    moments = [Moments.of(networks.dino_features(x)) for x in both]
    metrics["fdd"] = frechet_distance(*moments)
  if networks.clip is not None:
    metrics |= _clip_metrics(networks, case)
  pairwise: PerImage = {}
  if case.is_paired:
    pairwise = networks.pairwise(case.samples, case.reference)
    metrics |= {n: float(values.mean()) for n, values in pairwise.items()}
  if case.is_reconstruction:
    metrics = {
      re.sub(r"^(s?fid|fdd)", r"r\g<0>", n): v for n, v in metrics.items()
    }
  if real is not None:
    both = features, real
    sheets.best_and_worst(case.samples, case.reference, both, pairwise)
  if case.memorisation is not None:
    metrics["memorisation_ratio"] = _memorisation(
      case, networks, (features, real), sheets
    )
  metrics |= _custom_metrics(case, custom, features, real, metrics)
  return {name: float(value) for name, value in metrics.items()}


def _inception_metrics(
  case: Comparison, features: FeaturesByMode, real: FeaturesByMode | None
) -> dict[str, float]:
  """FID, IS, KID, ...: what the features and the reference allow."""
  metrics: dict[str, float] = {}
  for mode, found in features.items():
    metrics |= comparison.single_set_metrics(found, mode)
    if real:
      statistics = Statistics.of(real[mode], mode)
      metrics |= comparison.two_set_metrics(found, real[mode], mode)
      metrics |= comparison.distribution_metrics(found, statistics, mode)
    elif case.reference is not None:
      metrics |= comparison.distribution_metrics(found, case.reference, mode)
  return metrics


def _clip_metrics(
  networks: MetricNetworks, case: Comparison
) -> dict[str, float]:
  """CLIP score where there are captions, CMMD where there are two sets."""
  embeddings, metrics = networks.embeddings(case.samples), {}
  if case.reference_images is not None:
    others = networks.embeddings(case.reference_images)
    metrics["cmmd"] = cmmd(embeddings, others)
  if case.captions:
    scores = networks.clip_scores(embeddings, case.captions)
    metrics["clip_score"] = float(scores.mean())
  else:
    networks.missing["clip_score"] = "captions of the samples"
  return metrics


def _memorisation(
  case: Comparison,
  networks: MetricNetworks,
  features: tuple[FeaturesByMode, FeaturesByMode | None],
  sheets: ContactSheets,
) -> float:
  held_out, train = case.memorisation
  ours, real = features
  theirs = real if held_out is case.reference else networks.features(held_out)
  sets = case.samples, held_out, train
  return sheets.memorisation(sets, (ours, theirs, networks.features(train)))


def _custom_metrics(
  case: Comparison,
  custom: Sequence[Metric],
  features: FeaturesByMode,
  real: FeaturesByMode | None,
  known: dict[str, float],
) -> dict[str, float]:
  """The user's metrics.

  Raises:
    ConfigError: a name is taken, or features are needed without Inception.
  """
  metrics: dict[str, float] = {}
  for metric in custom:
    found: dict[str, float] = {}
    if not takes_features(metric):
      found = apply_metric(metric, case.samples, case.reference_images)
    for mode in features if takes_features(metric) else ():
      other = real[mode] if real else None
      found |= apply_metric(metric, features[mode], other, f"_{mode}")
    if taken := sorted(found.keys() & (known | metrics).keys()):
      raise ConfigError(
        f"the metric {metric!r} returned {taken[0]!r}, which is the name of "
        "another metric; rename it"
      )
    metrics |= found
  return metrics
