"""Behind train.py: an experiment and a folder become a loop that runs."""

import contextlib
import functools
import json
import logging
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from ldm_jax import config
from ldm_jax.cli.exit_codes import (
  DATA,
  USAGE,
  WEIGHTS,
  CommandError,
  usage_errors,
)
from ldm_jax.config import Experiment
from ldm_jax.config_tree import override
from ldm_jax.data.bad_images import BadImageLog
from ldm_jax.errors import (
  ConfigError,
  DamagedFile,
  DataError,
  ImageError,
  TooLarge,
)
from ldm_jax.runtime.checkpointing.run_lock import run_lock
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.monitoring import metric_writer
from ldm_jax.training.dataloading import (
  bad_image_log,
  batches,
  example_indices,
  held_out,
)
from ldm_jax.training.setup import PreparedRun, prepare_run
from ldm_jax.training.trainer import Trainer

logger = logging.getLogger(__name__)


def train(
  path: str,
  folder: str,
  overrides: Mapping[str, str],
  profile: str | None = None,
) -> int:
  """Trains the experiment of the config file; returns the exit code.

  Args:
    profile: FROM:TO, the steps to trace.
  """
  with contextlib.ExitStack() as held:
    with usage_errors(DATA):
      if "://" in folder:
        raise ConfigError(
          f"--workdir={folder} is not on this machine; mount the bucket (such "
          "as by gcsfuse) and give its path here"
        )
      processes.initialize()
      traced = profile and _steps(profile)
      experiment = override(config.load(path), overrides)
      sharding = experiment.mesh.build()
      sharding.check_batch(experiment.data.batch, slices(experiment))
      _greet(held.enter_context(run_lock(folder)))
      begun = prepare_run(experiment, folder, sharding)
    bad = bad_image_log(begun.run.experiment, folder)
    try:
      code = _loop(begun, sharding, traced or None, bad)
    except TooLarge as error:
      raise CommandError(str(error), USAGE) from error
    except DamagedFile as error:
      raise CommandError(str(error), WEIGHTS) from error
    except (ImageError, DataError) as error:
      raise CommandError(str(error), DATA) from error
  if code:
    logger.info(f"go on with: python {shlex.join(sys.argv)}")
  if processes.is_first():
    told: dict[str, Any] = {}
    for line in metric_writer.read_metrics(folder):
      told |= line
    if len(bad):
      told["bad_samples"] = len(bad)
    print(json.dumps({"workdir": folder} | told))
  return code


def _greet(before: dict[str, Any] | None) -> None:
  """Says that whoever trained here before did not end in order."""
  if before is not None:
    logger.info(
      f"process {before['pid']} on {before['host']}, which trained here since "
      f"{before['since']}, ended without a word"
    )


def slices(experiment: Experiment) -> int:
  """Into how many parts a batch is cut before an update."""
  return getattr(experiment.task, "accumulate", 1)


def _steps(text: str) -> tuple[int, int]:
  first, colon, last = text.partition(":")
  if not (colon and first.isdigit() and last.isdigit()) or not (
    0 < int(first) <= int(last)
  ):
    raise ConfigError(
      f"--profile takes the first and the last step, such as 100:110, got "
      f"{text!r}"
    )
  return int(first), int(last)


def _loop(
  begun: PreparedRun,
  sharding: Sharding,
  traced: tuple[int, int] | None,
  bad: BadImageLog,
) -> int:
  run, words = begun.run, begun.words
  experiment, reports = run.experiment, run.experiment.reports
  example = held_out(experiment, words)
  shown = {name: rows[: reports.previews] for name, rows in example.items()}
  captions = [words.decode(ids) for ids in shown["tokens"]] if words else ()
  loop = Trainer(
    experiment.task,
    sharding,
    run.folder,
    experiment.steps,
    experiment.seed,
    experiment.checkpoints,
    reports.every,
    reports.previews_every,
    captions,
    traced,
    begun.start,
    functools.partial(example_indices, experiment),
    reports.hang_seconds,
    reports.abort_seconds,
  )
  return loop.run(
    begun.frozen,
    lambda start: batches(experiment, words, start, sharding, bad),
    sharding.distribute(example),
    sharding.distribute(shown),
  )
