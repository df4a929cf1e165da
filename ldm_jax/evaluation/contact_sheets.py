"""Sheets of pictures beside their fellows, and how near those are."""

import os

import numpy as np

from ldm_jax.evaluation.image_sets import ImageSet
from ldm_jax.evaluation.metric_networks import Each
from ldm_jax.evaluation.metrics.distribution_distances import closest
from ldm_jax.nn.encoders.inception import Features
from ldm_jax.runtime import image_files
from ldm_jax.runtime.devices import processes

SHOWN = 16

Seen = dict[str, Features]  # by the world of resizing; empty without Inception


def extremes(
  out: str | None,
  samples: ImageSet,
  real: ImageSet,
  seen: list[Seen],
  each: Each,
) -> None:
  """The best and the worst: of pairs by PSNR, else by the nearest real one."""
  if each:
    away, places = -each["psnr"], np.arange(len(samples))
  else:
    away, places = closest(_rows(seen[0], samples), _rows(seen[1], real))
  order = np.argsort(away, kind="stable")
  _lay(out, "best", samples, real, order[:SHOWN], places)
  _lay(out, "worst", samples, real, order[::-1][:SHOWN], places)


def memorisation(
  out: str | None, albums: tuple[ImageSet, ImageSet, ImageSet], seen: list[Seen]
) -> float:
  """How near samples are to what was learned from, over how near unseen
  examples are; and the nearest of them.

  Args:
    albums: samples, unseen examples, training pictures; as `seen`.
  """
  samples, _, train = albums
  ours, unseen, learned = map(_rows, seen, albums)
  near, places = closest(ours, learned)
  usual, _ = closest(unseen, learned)
  order = np.argsort(near, kind="stable")
  _lay(out, "nearest", samples, train, order[:SHOWN], places)
  return float(np.median(near) / np.median(usual))


def _rows(seen: Seen, album: ImageSet) -> np.ndarray:
  """What pictures are compared by: Inception's features, or their pixels."""
  for features in seen.values():
    return features.pooled
  return album.pixels()


def _lay(
  out: str | None,
  name: str,
  samples: ImageSet,
  others: ImageSet,
  chosen: np.ndarray,
  places: np.ndarray,
) -> None:
  """A sheet of samples, each with its fellow on the right."""
  if not out or not processes.is_first():
    return
  pairs = [(samples[int(i)], others[int(places[i])]) for i in chosen]
  if len({picture.shape for pair in pairs for picture in pair}) > 1:
    return
  sheet = np.stack([np.concatenate(pair, axis=1) for pair in pairs])
  path = os.path.join(out, f"{name}.png")
  image_files.write_png(path, image_files.image_grid(sheet, columns=4))
  print(path)
