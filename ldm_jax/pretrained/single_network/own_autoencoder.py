"""The autoencoder of a run, with what the run knows of its latents."""

import itertools
from typing import Any

import jax

from ldm_jax.config import Experiment
from ldm_jax.data import batching
from ldm_jax.data.bad_images import BadImageLog, SkipBadImages
from ldm_jax.errors import ConfigError, LdmJaxError
from ldm_jax.latents import measure_latent_scale
from ldm_jax.run import Run

_BATCHES = 4


def trained_size(run: Run) -> int | None:
  """The side of the images that a run was trained on; None if not square."""
  _, height, width, _ = run.batch["image"].shape
  return height if height == width else None


def measured_scale(run: Run, params: Any) -> float:
  """1 / std of the latents of the run's first training images.

  Raises:
    ConfigError: the images are not there any more, or unreadable.
    NonFinite: the variance of the latents is 0 or not finite.
  """
  experiment = run.experiment
  try:
    found = list(itertools.islice(_batches(experiment), _BATCHES))
  except (LdmJaxError, OSError) as error:
    raise ConfigError(
      f"the scale of the latents is measured on the run's training images, "
      f"which cannot be read ({error}); give it with latent_scale "
      "(--latent_scale)"
    ) from error
  return measure_latent_scale(
    experiment.task.autoencoder, params, found, jax.random.key(experiment.seed)
  )


def _batches(experiment: Experiment) -> Any:
  data = experiment.data
  source, augment = data.training
  log = BadImageLog(None, data.max_bad_fraction)
  return batching.batches(
    SkipBadImages(source, log),
    batch=data.batch,
    seed=experiment.seed,
    augment=augment,
    transforms=data.transforms,
    threads=1,
    buckets=data.buckets,
  )
