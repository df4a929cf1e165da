"""Runs that have a checkpoint and have learned nothing, in no time."""

import contextlib
import os

from ldm_jax import config
from ldm_jax.commands.beginning import ready
from ldm_jax.commands.feeding import held_out
from ldm_jax.nodes import override
from ldm_jax.programs import Programs
from ldm_jax.runtime.checkpoint import Checkpoints


def untrained(path, folder, flags):
  """Writes the run of a config with these flags, at step 0 of its steps."""
  told = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags)
  experiment = override(config.load(str(path)), told)
  sharding = experiment.mesh.build()
  run, words, frozen, _ = ready(experiment, str(folder), sharding)
  batch = sharding.whole(held_out(run.experiment, words))
  programs = Programs(run.experiment.task, sharding, 0, frozen, batch)
  where = os.path.join(folder, "checkpoints")
  with contextlib.closing(Checkpoints(where)) as checkpoints:
    checkpoints.save(1, programs.init(batch))
