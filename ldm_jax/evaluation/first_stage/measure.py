"""All metrics of one first stage."""

import functools
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ldm_jax.evaluation.contact_sheets import FeaturesByMode
from ldm_jax.evaluation.first_stage import patterns
from ldm_jax.evaluation.first_stage.charts import Charts
from ldm_jax.evaluation.first_stage.codec import Codec, Cost, Encoded
from ldm_jax.evaluation.first_stage.load import LoadedFirstStage
from ldm_jax.evaluation.first_stage.request import FirstStageMetrics
from ldm_jax.evaluation.first_stage.sheet import CELL
from ldm_jax.evaluation.image_sets import ImageSet
from ldm_jax.evaluation.metric_networks import MetricNetworks
from ldm_jax.evaluation.metrics import comparison
from ldm_jax.evaluation.metrics.frechet import Moments, frechet_distance
from ldm_jax.evaluation.metrics.latent_neighbours import interpolated_latents
from ldm_jax.evaluation.metrics.latent_statistics import LatentStatistics
from ldm_jax.evaluation.metrics.radial_bands import frequency_error
from ldm_jax.evaluation.metrics.statistics import Statistics

SHOWN = 2  # of the images, in a sheet

Image = UInt8[np.ndarray, "_ _ 3"]
Images = UInt8[np.ndarray, "_ _ _ 3"]
Numbers = dict[str, int | float]


class Originals:
  """The images and charts that all first stages are measured on."""

  def __init__(self, images: Images, charts: Charts, networks: MetricNetworks):
    """Features of the images are computed once, when they are needed."""
    self.images, self.charts, self.networks = images, charts, networks

  @functools.cached_property
  def statistics(self) -> dict[str, Statistics]:
    """Statistics of Inception's features by resizing mode."""
    features = self.features(self.images, "originals")
    return {mode: Statistics.of(f, mode) for mode, f in features.items()}

  @functools.cached_property
  def dino_moments(self) -> Moments:
    """Moments of DINOv2's features."""
    images = image_set(self.images, "originals")
    return Moments.of(self.networks.dino_features(images))

  def features(self, images: Images, name: str) -> FeaturesByMode:
    """Inception's features by resizing mode; empty without Inception."""
    return self.networks.features(image_set(images, name))

  def shown(self) -> dict[str, Image]:
    """The first images and an overview of each chart, for a sheet."""
    return shown(self.images, self.charts)


def image_set(images: Images, name: str) -> ImageSet:
  """An array of images as a set."""
  rows = [{"image": image} for image in images]
  return ImageSet(name, rows, range(len(rows)))


def shown(images: Images, charts: Charts) -> dict[str, Image]:
  """The first images and an overview of each chart, by what they show."""
  first = {f"image {i + 1}": image for i, image in enumerate(images[:SHOWN])}
  return first | charts.overviews(CELL)


def measure(
  stage: LoadedFirstStage, codec: Codec, originals: Originals, rounds: int
) -> tuple[FirstStageMetrics, dict[str, Image]]:
  """Metrics of a first stage, and its reconstructions for a sheet.

  Args:
    rounds: of timing.
  """
  images = originals.images
  encoded = codec.encode(images)
  reconstructions = codec.decode(encoded.mode)
  charts = originals.charts.through(codec.reconstruct)
  latents = LatentStatistics.of(encoded.mode, encoded.logvar)
  found = patterns.responses(charts.patterns)
  errors = frequency_error(images, reconstructions)
  metrics = {
    **_shape(stage, images),
    **_pairwise(originals, reconstructions),
    **_distances(originals, codec, encoded, reconstructions),
    **{f"error_{band}": error for band, error in errors.items()},
    **{
      f"text_{pages.size}_px": pages.fraction_read(pages.images)
      for pages in charts.text
    },
    **patterns.summary(found),
    **_latents(latents),
    **_cost(codec.cost(images, rounds)),
  }
  details: dict[str, Any] = {
    "latents": latents.to_json(),
    "patterns": [
      {
        "kind": response.pattern.kind,
        "period": response.pattern.period,
        "contrast": response.contrast,
        "phase_degrees": response.phase,
      }
      for response in found
    ],
  }
  result = FirstStageMetrics(stage.name, stage.path, metrics, details)
  return result, shown(reconstructions, charts)


def _shape(stage: LoadedFirstStage, images: Images) -> Numbers:
  """What the first stage is: its compression and its size."""
  height, width, channels = stage.module.latent_shape(*images.shape[1:3])
  return {
    "stride": stage.module.stride,
    "channels": channels,
    "pixel_values_per_latent": float(
      3 * images[0, ..., 0].size / (height * width * channels)
    ),
    "parameters_millions": stage.parameter_count / 1e6,
  }


def _pairwise(originals: Originals, reconstructions: Images) -> Numbers:
  """PSNR, SSIM and LPIPS, means over the images."""
  pair = (
    image_set(reconstructions, "reconstructions"),
    image_set(originals.images, "originals"),
  )
  found = originals.networks.pairwise(*pair)
  return {name: float(values.mean()) for name, values in found.items()}


def _distances(
  originals: Originals, codec: Codec, encoded: Encoded, reconstructions: Images
) -> Numbers:
  """rFID, iFID and rFDD, those whose networks there are."""
  metrics: Numbers = {}
  features = originals.features(reconstructions, "reconstructions")
  for mode, rows in features.items():
    theirs = originals.statistics[mode]
    found = comparison.distribution_metrics(rows, theirs, mode)
    metrics |= {f"r{name}": value for name, value in found.items()}
  if features:
    between = codec.decode(interpolated_latents(encoded.mode))
    for mode, rows in originals.features(between, "interpolations").items():
      theirs = originals.statistics[mode].pooled
      distance = frechet_distance(Moments.of(rows.pooled), theirs)
      metrics[f"ifid_{mode}"] = distance
  if originals.networks.has_dino:
    rows = originals.networks.dino_features(
      image_set(reconstructions, "reconstructions")
    )
    distance = frechet_distance(Moments.of(rows), originals.dino_moments)
    metrics["rfdd"] = distance
  return metrics


def _latents(latents: LatentStatistics) -> Numbers:
  """Means over the channels, and the spectrum."""
  metrics = {
    "latent_std": float(latents.std.mean()),
    "latent_kurtosis": float(latents.kurtosis.mean()),
  }
  if latents.kl is not None:
    metrics["kl_nats"] = float(latents.kl.mean())
  spectrum = latents.spectrum.items()
  return metrics | {f"latent_power_{band}": value for band, value in spectrum}


def _cost(cost: Cost) -> Numbers:
  metrics = {
    "encoded_per_second": cost.encoded,
    "decoded_per_second": cost.decoded,
  }
  if cost.decoding_bytes is not None:
    metrics["decoding_MiB"] = cost.decoding_bytes / 2**20
  return metrics
