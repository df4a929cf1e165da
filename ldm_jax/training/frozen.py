"""The parameters of a run that are not trained."""

import itertools
import logging
from typing import Any, NamedTuple

import jax
import numpy as np

from ldm_jax.config import Experiment
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.latents import measure_latent_scale
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.pretrained.metric_networks.lpips import perceptual
from ldm_jax.pretrained.stacked_parameters import stack_parameters
from ldm_jax.pretrained.text import text_encoders
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.training import denoiser
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.dataloading import bad_image_log, batches, example_of
from ldm_jax.training.distillation import DistillationTask
from ldm_jax.training.first_stage import teacher
from ldm_jax.training.first_stage.autoencoder_state import Frozen

logger = logging.getLogger(__name__)

SCALE_BATCHES = 8  # on which the scale of latents is measured


class FirstStageParams(NamedTuple):
  """An autoencoder to freeze.

  Attributes:
    filled: the experiment with its architecture and digest filled in.
    scale: of its latents, if the model that it belongs to stores it.
  """

  params: Any
  filled: Experiment
  scale: float | None = None


def load_frozen(
  experiment: Experiment,
  first_stage: FirstStageParams | None,
  start: LoadedModel | None,
  tokenizer: Tokenizer | None,
  sharding: Sharding,
) -> Any:
  """Parameters that are not trained, on the devices."""
  task = experiment.task
  if first_stage is None:
    frozen = _frozen_of_task(experiment, tokenizer)
    return jax.device_put(frozen, sharding.tree_shardings(frozen))
  scale = task.latent_scale or first_stage.scale
  if scale is None:
    stream = itertools.islice(
      batches(experiment, tokenizer, 0, sharding, bad_image_log(experiment)),
      SCALE_BATCHES,
    )
    scale = measure_latent_scale(
      task.first_stage,
      first_stage.params,
      map(sharding.put_batch, stream),
      jax.random.key(experiment.seed),
      task.latents,
    )
    logger.info("latents are multiplied by %.5f, their measured 1 / std", scale)
  scale = jax.device_put(np.float32(scale), sharding.replicated)
  if isinstance(task, DistillationTask):
    lpips = _perceptual(experiment)
    lpips = jax.device_put(lpips, sharding.tree_shardings(lpips))
    return teacher.Frozen(first_stage.params, scale, lpips)
  encoders = frozen_conditioners(experiment, start)
  if encoders:
    parts = stack_parameters(task.model, {"conditioners": encoders})
    encoders = parts["conditioners"]
  encoders = jax.device_put(encoders, sharding.tree_shardings(encoders))
  return denoiser.Frozen(first_stage.params, scale, encoders)


def _frozen_of_task(experiment: Experiment, tokenizer: Tokenizer | None) -> Any:
  """The frozen arrays of a task without a first stage."""
  task = experiment.task
  if isinstance(task, AutoencoderTask):
    lpips = _perceptual(experiment)
    return Frozen(lpips, [r.load_frozen() for r in task.regularizers] or None)
  example = example_of(experiment, tokenizer)
  if hasattr(task, "load_frozen"):
    return task.load_frozen(example)
  frozen = task.frozen_shapes(example)
  if jax.tree.leaves(frozen):
    raise ConfigError(
      f"{type(task).__name__}.frozen_shapes has arrays, so the task needs a "
      "method load_frozen(batch) that reads them"
    )
  return frozen


def _perceptual(experiment: Experiment) -> Any:
  """The parameters of the task's LPIPS, or None."""
  module = experiment.task.perceptual
  return None if module is None else perceptual(module, experiment.perceptual)


def frozen_conditioners(
  experiment: Experiment, start: LoadedModel | None
) -> dict[str, Any]:
  """Variables of the conditioners that are not trained, by their inputs.

  Raises:
    ConfigError, WeightsError: see `text_encoders.load_text_encoders`.
  """
  task = experiment.task
  if start is not None and not experiment.text_encoders:
    loaded = start.params.conditioners
    return {n: loaded[n] for n in task.model.frozen_conditioners if n in loaded}
  if isinstance(getattr(task, "model", None), LatentDiffusion):
    return text_encoders.load_text_encoders(
      task.model, experiment.text_encoders
    )
  return {}
