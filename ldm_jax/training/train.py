"""train(): trains an experiment in a run folder."""

import contextlib
import dataclasses
import functools
import logging
import signal
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldm_jax import config
from ldm_jax.config import Experiment
from ldm_jax.data.bad_images import BadImageLog
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.fields.arguments import checked
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.folder_lock import folder_lock
from ldm_jax.runtime.monitoring import metric_writer
from ldm_jax.runtime.monitoring.tracker_names import check_trackers, tracker_of
from ldm_jax.training.dataloading import (
  bad_image_log,
  batches,
  example_indices,
  held_out,
)
from ldm_jax.training.preparation.embedded_texts import with_embedded_texts
from ldm_jax.training.resume import ResumeOptions
from ldm_jax.training.setup import PreparedRun, prepare_run
from ldm_jax.training.trainer import Trainer, TrainingOutcome

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingResult:
  """How a training ended.

  Attributes:
    workdir: the run folder.
    step: updates that the run has had.
    metrics: the newest value of every metric in metrics.jsonl, with "step" and
      "seconds"; empty on all processes but the first.
    bad_samples: examples that could not be read and were replaced.
    interrupted: the signal that ended it after a checkpoint, or None.
  """

  workdir: str
  step: int
  metrics: Mapping[str, Any]
  bad_samples: int = 0
  interrupted: signal.Signals | None = None


@checked
def train(
  experiment: Experiment | str,
  workdir: str,
  *,
  overrides: Mapping[str, str] | None = None,
  profile: tuple[int, int] | None = None,
  trust: Sequence[str] = (),
  allow_changed_data: bool = False,
  override: bool = False,
  trackers: Sequence[str] = (),
) -> TrainingResult:
  """Trains an experiment, or resumes the run of it in `workdir`.

  Args:
    experiment: an `Experiment`, or the path or name of a config file.
    workdir: the run folder; created if there is none.
    overrides: fields of the experiment to set, by dotted path, such as
      {"task.optimizer.rate": "1e-4"}.
    profile: the first and the last step to trace into WORKDIR/profile.
    trust: top-level packages whose classes the runs `first_stage` and `start`
      may name, in addition to those of the experiment's own classes.
    allow_changed_data: resume although the data's count, classes or names are
      others than when the run began; it is recorded in changes.jsonl.
    override: resume with other values of fields that are safe to change, such
      as the learning rate and the batch; recorded there too. See
      `resume.OVERRIDABLE`.
    trackers: "wandb", "trackio" or "mlflow", besides the experiment's own.

  Raises:
    ConfigError: the experiment cannot run, could not be read back from the
      run's config.json, or is not the one that `workdir` holds.
    DataError, ImageError: its data cannot be used.
    WeightsError: foreign weights that it begins from cannot be used.
    NonFinite: a loss or parameter is not finite; that state is not saved.
    DamagedFile: the run's files are damaged.
    SaveFailed: checkpoints cannot be written.
    TooLarge: no device has the memory.
  """
  with contextlib.ExitStack() as held:
    with config_errors():
      _check_workdir(workdir)
      processes.initialize()
      options = ResumeOptions(allow_changed_data, override)
      _check_profile(profile)
      experiment = config.resolve(experiment, overrides or {})
      experiment = _with_trackers(experiment, trackers)
      sharding = experiment.mesh.build()
      sharding.check_batch(experiment.data.batch, slices(experiment))
      _log_unfinished(held.enter_context(folder_lock(workdir)))
      prepared = prepare_run(experiment, workdir, sharding, trust, options)
    bad = bad_image_log(prepared.run.experiment, workdir)
    prepared, measured = _with_held_out(prepared, sharding)
    outcome = _run(prepared, measured, sharding, profile, bad)
  metrics: dict[str, Any] = {}
  if processes.is_first():
    for line in metric_writer.read_metrics(workdir):
      metrics |= line
  return TrainingResult(
    workdir, outcome.step, metrics, len(bad), outcome.interrupted
  )


def _check_workdir(workdir: str) -> None:
  if "://" in workdir:
    raise ConfigError(
      f"workdir {workdir} is not on this machine; mount the bucket (such as "
      "by gcsfuse) and give its path here"
    )


def _with_trackers(experiment: Experiment, names: Sequence[str]) -> Experiment:
  """The experiment with further trackers, unless it has some of their kind.

  Raises:
    ConfigError: there is none of that name, or its package is missing.
  """
  found = list(experiment.trackers)
  for tracker in map(tracker_of, names):
    if type(tracker) not in map(type, found):
      found.append(tracker)
  check_trackers(found)
  return dataclasses.replace(experiment, trackers=tuple(found))


def slices(experiment: Experiment) -> int:
  """The number of slices into which a batch is cut for accumulation."""
  return getattr(experiment.task, "accumulate", 1)


def _log_unfinished(before: dict[str, Any] | None) -> None:
  """Logs that the process which trained here before was killed."""
  if before is not None:
    logger.info(
      f"process {before['pid']} on {before['host']}, which trained here since "
      f"{before['since']}, ended without releasing the run"
    )


def _check_profile(steps: tuple[int, int] | None) -> None:
  if steps is not None and not 0 < steps[0] <= steps[1]:
    raise ConfigError(
      "profile takes the first and the last step, such as 100:110, got "
      f"{steps[0]}:{steps[1]}"
    )


def _captions(
  tokenizer: Tokenizer | None, batch: Mapping[str, np.ndarray], count: int
) -> Sequence[str]:
  """The captions of the first examples."""
  if tokenizer is None:
    return ()
  return [tokenizer.decode(ids) for ids in batch["tokens"][:count]]


class _HeldOut(NamedTuple):
  """The batch that is measured.

  Attributes:
    captions: of the examples that previews show.
  """

  batch: dict[str, np.ndarray]
  captions: Sequence[str]


def _with_held_out(
  prepared: PreparedRun, sharding: Sharding
) -> tuple[PreparedRun, _HeldOut]:
  """The run and its held-out batch; with cached texts, both as these need.

  The caller keeps no other reference to the run: those text encoders that are
  no longer read then leave the devices.
  """
  run, tokenizer = prepared.run, prepared.tokenizer
  batch = held_out(run.experiment, tokenizer)
  captions = _captions(tokenizer, batch, run.experiment.reports.previews)
  frozen, batch = with_embedded_texts(
    run.experiment, prepared.frozen, batch, sharding
  )
  return prepared._replace(frozen=frozen), _HeldOut(batch, captions)


def _run(
  prepared: PreparedRun,
  measured: _HeldOut,
  sharding: Sharding,
  profile: tuple[int, int] | None,
  bad: BadImageLog,
) -> TrainingOutcome:
  """Hands the prepared run to the trainer."""
  run, tokenizer = prepared.run, prepared.tokenizer
  experiment, reports = run.experiment, run.experiment.reports
  example = measured.batch
  shown = {name: rows[: reports.previews] for name, rows in example.items()}
  trainer = Trainer(
    experiment.task,
    sharding,
    run.folder,
    experiment.steps,
    experiment.seed,
    experiment.checkpoints,
    reports.every,
    reports.previews_every,
    measured.captions,
    profile,
    prepared.start,
    functools.partial(example_indices, experiment),
    reports.hang_seconds,
    reports.abort_seconds,
    experiment.trackers,
  )
  return trainer.run(
    prepared.frozen,
    lambda step: batches(experiment, tokenizer, step, sharding, bad),
    sharding.distribute(example),
    sharding.distribute(shown),
  )
