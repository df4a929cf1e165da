"""Stage one that begins from a trained autoencoder."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax

from ldm_jax import config_json
from ldm_jax.config import Experiment
from ldm_jax.errors import ConfigError
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.first_stage import FirstStage
from ldm_jax.pretrained.hub.fetch import local_path
from ldm_jax.pretrained.open_autoencoder import open_autoencoder
from ldm_jax.run import Run
from ldm_jax.runtime.checkpointing import read_checkpoints
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.first_stage.trainable_parameters import check_prefixes

# Fields that change how an autoencoder is computed, not what its parameters
# mean.
_FREE = ("attention_backend", "dropout", "dtype", "remat")


def begin_from(
  experiment: Experiment, sharding: Sharding, trust: Collection[str] = ()
) -> tuple[Experiment, dict[str, Any]]:
  """The experiment with the start's architecture, and what it begins with.

  Returns:
    The experiment, and "autoencoder" and, where it is continued, "critic", on
    the devices.

  Raises:
    ConfigError: the start is another autoencoder than the config's, has no
      discriminator to continue, or `trains` selects nothing.
    WeightsError: as `open_autoencoder`.
  """
  task = experiment.task
  module, variables, _ = open_autoencoder(experiment.start, trust)
  if task.autoencoder is not None:
    _check_same(task.autoencoder, module, experiment.start)
    module = task.autoencoder
  task = dataclasses.replace(task, autoencoder=module)
  check_prefixes(variables, task.trains)
  start = {"autoencoder": variables}
  if task.continues_discriminator:
    start["critic"] = _critic(experiment.start, task, sharding, trust)
  start = jax.device_put(start, sharding.tree_shardings(start))
  return dataclasses.replace(experiment, task=task), start


def _check_same(own: FirstStage, start: FirstStage, path: str) -> None:
  """Raises ConfigError if their parameters do not mean the same."""
  lines = config_json.differences(_plain(own), _plain(start))
  if lines:
    raise ConfigError(
      f"the config's autoencoder is not that of start {path!r}: "
      f"{'; '.join(lines[:3])}; take the start's (--config.task.autoencoder="
      "none)"
    )


def _plain(module: FirstStage) -> FirstStage:
  """The module with the default of every field that is free to differ."""
  if not isinstance(module, Autoencoder):
    return module
  default = Autoencoder().trunk
  free = {name: getattr(default, name) for name in _FREE}
  plain = lambda trunk: trunk and dataclasses.replace(trunk, **free)
  return module.clone(
    trunk=plain(module.trunk),
    decoder_trunk=plain(module.decoder_trunk),
    normalization=None,
  )


def _critic(
  path: str, task: AutoencoderTask, sharding: Sharding, trust: Collection[str]
) -> Any:
  """The discriminator's parameters of the run to begin from."""
  folder = local_path(path)
  run = Run.open(folder, trust) if Run.exists(folder) else None
  before = getattr(run and run.experiment.task, "discriminator", None)
  if before is None or before != task.discriminator:
    found = "none" if before is None else before
    raise ConfigError(
      f"continues_discriminator needs the discriminator of start {path!r} to "
      f"be {task.discriminator}, and it is {found}; begin with a fresh one "
      "(--config.task.continues_discriminator=False)"
    )
  shapes = run.state_shapes().critic
  placed = jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    shapes,
    sharding.tree_shardings(shapes),
  )
  _, restored = read_checkpoints.restore_newest_subtree(
    f"{folder}/checkpoints", {"critic": placed}
  )
  return restored["critic"]


def with_start(
  experiment: Experiment, sharding: Sharding, trust: Collection[str]
) -> tuple[Experiment, dict[str, Any] | None]:
  """Stage one with its architecture, and the parameters to begin from.

  Raises:
    ConfigError: there is no model to begin from, and the config needs one.
  """
  if experiment.start:
    return begin_from(experiment, sharding, trust)
  task = experiment.task
  if task.autoencoder is None or task.continues_discriminator:
    needed = (
      "autoencoder=None"
      if task.autoencoder is None
      else ("continues_discriminator")
    )
    raise ConfigError(
      f"{needed} takes it from a trained model, and none is named; give a run, "
      "a folder or a file (--config.start)"
    )
  if task.trains:
    raise ConfigError(
      f"trains={task.trains} leaves the rest as it was initialised, for no "
      "model to begin from is named (--config.start)"
    )
  return experiment, None


def with_autoencoder(experiment: Experiment, stored: Run) -> Experiment:
  """`experiment` with the autoencoder that the run took from its start."""
  task, before = experiment.task, stored.experiment.task
  if not isinstance(task, AutoencoderTask) or task.autoencoder is not None:
    return experiment
  module = getattr(before, "autoencoder", None)
  task = dataclasses.replace(task, autoencoder=module)
  return dataclasses.replace(experiment, task=task)
