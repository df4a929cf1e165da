"""Contact sheets: samples next to the images most similar to them."""

import os

import numpy as np

from ldm_jax.evaluation.image_sets import ImageSet
from ldm_jax.evaluation.metric_networks import PerImage
from ldm_jax.evaluation.metrics.distribution_distances import nearest_distances
from ldm_jax.evaluation.metrics.resizing import ResizeMode
from ldm_jax.nn.encoders.inception import Features
from ldm_jax.runtime import image_files
from ldm_jax.runtime.devices import processes

SHOWN = 16

FeaturesByMode = dict[ResizeMode, Features]  # empty without Inception


class ContactSheets:
  """Writes PNGs into a folder.

  Attributes:
    files: the paths written.
  """

  def __init__(self, folder: str | None):
    """`folder` None writes no sheets."""
    self._folder, self.files = folder, []

  def best_and_worst(
    self,
    samples: ImageSet,
    real: ImageSet,
    features: tuple[FeaturesByMode, FeaturesByMode],
    pairwise: PerImage,
  ) -> None:
    """best.png and worst.png: pairs by PSNR, else by the nearest real image."""
    if pairwise:
      distances, indices = -pairwise["psnr"], np.arange(len(samples))
    else:
      rows = _vectors(features[0], samples), _vectors(features[1], real)
      distances, indices = nearest_distances(*rows)
    order = np.argsort(distances, kind="stable")
    self._write("best", samples, real, order[:SHOWN], indices)
    self._write("worst", samples, real, order[::-1][:SHOWN], indices)

  def memorisation(
    self,
    sets: tuple[ImageSet, ImageSet, ImageSet],
    features: tuple[FeaturesByMode, FeaturesByMode, FeaturesByMode],
  ) -> float:
    """Median distance of samples to the nearest training image, over that of
    held-out examples; and nearest.png.

    About 1 without memorisation, less with it.

    Args:
      sets: samples, held-out examples and training images.
      features: of these three.
    """
    samples, _, train = sets
    ours, held_out, trained_on = map(_vectors, features, sets)
    distances, indices = nearest_distances(ours, trained_on)
    expected, _ = nearest_distances(held_out, trained_on)
    order = np.argsort(distances, kind="stable")
    self._write("nearest", samples, train, order[:SHOWN], indices)
    return float(np.median(distances) / np.median(expected))

  def _write(
    self,
    name: str,
    samples: ImageSet,
    others: ImageSet,
    chosen: np.ndarray,
    indices: np.ndarray,
  ) -> None:
    """A sheet of chosen samples, each left of the image of its index."""
    if not self._folder or not processes.is_first():
      return
    pairs = [(samples[int(i)], others[int(indices[i])]) for i in chosen]
    if len({image.shape for pair in pairs for image in pair}) > 1:
      return
    sheet = np.stack([np.concatenate(pair, axis=1) for pair in pairs])
    path = os.path.join(self._folder, f"{name}.png")
    image_files.write_png(path, image_files.image_grid(sheet, columns=4))
    self.files.append(path)


def _vectors(features: FeaturesByMode, images: ImageSet) -> np.ndarray:
  """What images are compared by: Inception's features, else their pixels."""
  for found in features.values():
    return found.pooled
  return images.pixels()
