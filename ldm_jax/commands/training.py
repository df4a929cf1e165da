"""Behind train.py: an experiment and a folder become a loop that runs."""

import json
from collections.abc import Mapping
from typing import Any

from ldm_jax import config
from ldm_jax.commands.beginning import Ready, ready
from ldm_jax.commands.doors import DATA, NUMERICS, Stop, usage
from ldm_jax.commands.feeding import batches, held_out
from ldm_jax.config import Experiment
from ldm_jax.data.images import ImageError
from ldm_jax.loop import Loop, NonFinite
from ldm_jax.nodes import override
from ldm_jax.runtime import metrics, processes
from ldm_jax.runtime.sharding import Sharding


def train(path: str, folder: str, overrides: Mapping[str, str]) -> int:
  """Trains the experiment of the config file; returns the exit code."""
  with usage():
    processes.join()
    experiment = override(config.load(path), overrides)
    sharding = experiment.mesh.build()
    sharding.check_batch(experiment.data.batch, slices(experiment))
    begun = ready(experiment, folder, sharding)
  try:
    code = _loop(begun, sharding)
  except NonFinite as error:
    raise Stop(str(error), NUMERICS) from error
  except ImageError as error:
    raise Stop(str(error), DATA) from error
  if processes.is_first():
    told: dict[str, Any] = {}
    for line in metrics.read(folder):
      told |= line
    print(json.dumps({"workdir": folder} | told))
  return code


def slices(experiment: Experiment) -> int:
  """Into how many parts a batch is cut before an update."""
  return getattr(experiment.task, "accumulate", 1)


def _loop(begun: Ready, sharding: Sharding) -> int:
  run, words = begun.run, begun.words
  experiment, reports = run.experiment, run.experiment.reports
  example = held_out(experiment, words)
  shown = {name: rows[: reports.previews] for name, rows in example.items()}
  captions = [words.decode(ids) for ids in shown["tokens"]] if words else ()
  loop = Loop(
    experiment.task,
    sharding,
    run.folder,
    experiment.steps,
    experiment.seed,
    experiment.checkpoints,
    reports.every,
    reports.previews_every,
    captions,
    begun.start,
  )
  return loop.run(
    begun.frozen,
    lambda start: batches(experiment, words, start, sharding),
    sharding.whole(example),
    sharding.whole(shown),
  )
