"""What may change when a run is resumed: its data and its experiment."""

import dataclasses
import datetime
import json
import logging
import os
import re
from typing import Any

import jax

from ldm_jax import config_json
from ldm_jax.config import Experiment
from ldm_jax.data import fingerprint
from ldm_jax.errors import ConfigError
from ldm_jax.files.atomic_writes import replace_file
from ldm_jax.files.strict_json import read_object
from ldm_jax.run import DATA, MAY_CHANGE, Run, Shapes
from ldm_jax.training.denoiser import DenoiserTask

logger = logging.getLogger(__name__)

CHANGES = "changes.jsonl"  # in a run folder: what was changed on resuming

# Fields that change how training continues, not what its parameters mean.
OVERRIDABLE = re.compile(
  r"config\.(seed|data\.(batch|held_out|augment\.(crop|scale|flip))|task\.("
  r"(critic_)?optimizer\.\w+|ema_decay|accumulate|preview_\w+|offset_noise|"
  r"validation_times|loss\.(min_snr|density(\.\w+)*|norm)|disc_start|"
  r"\w+_weight|pixel_norm|reduction|critic_loss|latents|model\.(unet\.(dropout|remat|attention_backend)|"
  r"conditioners\.\d+\.drop_rate)|autoencoder\.trunk\.(dropout|remat))):"
)
# Where the data lies; free to change while the data is the same.
PLACES = re.compile(
  r"config\.data\.(latents|(source|validation)(\.\w+)*\.(path|folder|data_dir)):"
)


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
  """What a resumed run may differ in.

  Attributes:
    allow_changed_data: resume with data of another count, classes or names.
    override: resume with other values of the fields in `OVERRIDABLE`.
  """

  allow_changed_data: bool = False
  override: bool = False


def check_resumable(
  stored: Run, experiment: Experiment, options: ResumeOptions
) -> list[str]:
  """The changes of an experiment that the run can be resumed with.

  Raises:
    ConfigError: others, or some that `options` does not allow.
  """
  lines = config_json.differences(experiment, stored.experiment)
  lines = [line for line in lines if not line.startswith(MAY_CHANGE)]
  fixed = [x for x in lines if not (OVERRIDABLE.match(x) or PLACES.match(x))]
  changed = [line for line in lines if OVERRIDABLE.match(line)]
  if fixed:
    raise ConfigError(f"{_other(stored, fixed[0])}; {_way_on(stored)}")
  if changed and not options.override:
    raise ConfigError(
      f"{_other(stored, changed[0])}; resume with the new value (--override), "
      "or with the config it was started with, or choose another workdir "
      "(--workdir)"
    )
  if changed and not _has_same_state(stored, experiment):
    raise ConfigError(
      f"{_other(stored, changed[0])}, and its optimizer would have another "
      f"state; {_way_on(stored)}"
    )
  return lines


def check_data(
  stored: Run, experiment: Experiment, options: ResumeOptions
) -> list[str]:
  """How the data differs from when the run began, where that is allowed.

  Raises:
    ConfigError: it differs, and `options` does not allow it; or it is missing.
  """
  path = os.path.join(stored.folder, DATA)
  if not os.path.exists(path):
    return []  # the run of an earlier version
  before = read_object(path, ConfigError)
  try:
    now = fingerprints(experiment)
  except ConfigError as error:
    raise ConfigError(
      f"{error}; if the data moved, name its new place, such as "
      "--config.data.source.path=FOLDER"
    ) from error
  try:
    found = [
      f"{name}: {'; '.join(lines)}"
      for name in now
      if (lines := fingerprint.changes(before[name], now[name]))
    ]
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ConfigError(f"{path} is damaged: {error!r}") from error
  if found and not options.allow_changed_data:
    raise ConfigError(
      f"the data of {stored.folder} has changed since it began: "
      f"{'; '.join(found)}; restore it, or resume with the new data "
      "(--allow_changed_data)"
    )
  return found


def fingerprints(experiment: Experiment) -> dict[str, Any]:
  """Those of the training data and of what is held out."""
  source, _ = experiment.data.training
  return {
    "training data": fingerprint.fingerprint(source),
    "validation data": fingerprint.fingerprint(experiment.data.validation),
  }


def write_fingerprints(folder: str, experiment: Experiment) -> None:
  """Writes data.json of a run folder, atomically."""
  path = os.path.join(folder, DATA)
  with replace_file(path, "utf-8") as file:
    json.dump(fingerprints(experiment), file, indent=1)


def record_changes(run: Run, lines: list[str]) -> None:
  """Logs changes, and appends them to changes.jsonl of the run."""
  if not lines:
    return
  step = run.step if run.has_step else 0
  for line in lines:
    logger.warning(f"resumed at step {step} with a change: {line}")
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  with open(os.path.join(run.folder, CHANGES), "a") as file:
    file.write(json.dumps({"time": now, "step": step, "changes": lines}) + "\n")


def with_batch(shapes: Shapes, before: int, now: int) -> Shapes:
  """Shapes of a global batch of `now` rows, where it had `before`."""
  return {
    name: jax.ShapeDtypeStruct((now, *shape.shape[1:]), shape.dtype)
    if shape.shape[:1] == (before,)
    else shape
    for name, shape in shapes.items()
  }


def _has_same_state(stored: Run, experiment: Experiment) -> bool:
  """Whether a run's state is that of the changed experiment."""

  def state(task: Any) -> Any:
    frozen = task.frozen_shapes(stored.batch)
    found = jax.eval_shape(task.init, jax.random.key(0), stored.batch, frozen)
    leaves, tree = jax.tree.flatten(found)
    return tree, [(leaf.shape, leaf.dtype) for leaf in leaves]

  return state(stored.experiment.task) == state(experiment.task)


def _other(stored: Run, line: str) -> str:
  return f"{stored.folder} holds another experiment: {line}"


def _way_on(stored: Run) -> str:
  """What to do about a change that a resumed run cannot have."""
  keep = "choose the config it was started with, or another workdir (--workdir)"
  if not isinstance(stored.experiment.task, DenoiserTask):
    return keep
  return (
    f"{keep}; to begin a new run from its parameters, add "
    f"--config.start={stored.folder} there"
  )
