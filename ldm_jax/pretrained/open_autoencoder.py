"""Opens the autoencoder of a run, a folder, a file or a repository."""

import logging
import os
from collections.abc import Collection
from typing import Any, NamedTuple

import jax

from ldm_jax.errors import ConfigError
from ldm_jax.latents import known_latent_scale
from ldm_jax.nn.first_stage import FirstStage
from ldm_jax.pretrained.from_pretrained import find_components
from ldm_jax.pretrained.hub.fetch import local_path
from ldm_jax.pretrained.networks import latent_scale, load
from ldm_jax.run import Run, is_autoencoder
from ldm_jax.runtime.devices.sharding import MeshShape

logger = logging.getLogger(__name__)


class OpenedAutoencoder(NamedTuple):
  """A first stage with its variables, and the scale of its latents.

  Attributes:
    scale: what the denoiser's latents are multiplied by; None for a run that
      does not know it.
  """

  module: FirstStage
  variables: Any
  scale: float | None


def open_autoencoder(
  path: str, trust: Collection[str] = ()
) -> OpenedAutoencoder:
  """The first stage of a run or of published weights.

  Args:
    path: a run of either stage, a folder of an autoencoder or of a pipeline, a
      single file, or a repository of the hub.
    trust: see `Run.open`.

  Raises:
    ConfigError: it has no autoencoder.
    WeightsError: its weights are missing, malformed, or of another network.
  """
  path = local_path(path)
  if Run.exists(path):
    return _of_run(Run.open(path, trust))
  # Of a pipeline whose denoiser is not read here the autoencoder is.
  is_pipeline = os.path.isfile(os.path.join(path, "vae", "config.json"))
  found = find_components(path, subfolder="vae" if is_pipeline else None)
  if "vae" not in found.networks:
    raise ConfigError(
      f"{path!r} holds {', '.join(found.networks)}, and no autoencoder; give a "
      "folder or file that has one"
    )
  for warning in found.warnings:
    logger.warning("%s", warning)
  network = found.networks["vae"]
  return OpenedAutoencoder(*load(network), latent_scale(network.config))


def _of_run(run: Run) -> OpenedAutoencoder:
  sharding = MeshShape().build(jax.local_devices()[:1])
  task = run.experiment.task
  if is_autoencoder(task):
    scale = known_latent_scale(task)
    return OpenedAutoencoder(task.autoencoder, run.trained(sharding), scale)
  stage, frozen = getattr(task, "first_stage", None), run.frozen(sharding)
  variables = getattr(frozen, "first_stage", None)
  if stage is None or not variables:
    raise ConfigError(
      f"{run.folder!r} is a run of {type(task).__name__}, which has no "
      "autoencoder; give the run of a first stage, or published weights"
    )
  return OpenedAutoencoder(stage, variables, float(frozen.latent_scale))
