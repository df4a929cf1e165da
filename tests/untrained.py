"""Runs with few or no steps of training."""

import contextlib
import os

import jax
from networks import state_like

from ldm_jax import config
from ldm_jax.config import override
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.training.compiled_steps import CompiledTask
from ldm_jax.training.dataloading import held_out
from ldm_jax.training.setup import prepare_run

# A small autoencoder on two folders of images.
FOLDER = """
from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.data.sources.folder import Folder
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack

def get_config():
  return Experiment(
    task=AutoencoderTask(
      autoencoder=Autoencoder(
        trunk=ConvStack(channels=8, multipliers=(1,), blocks=1, groups=4)
      ),
      perceptual=None, discriminator=None, disc_weight=0.0,
    ),
    data=Data(
      source=Folder({source!r}), validation=Folder({good!r}),
      augment=Augment(16), batch=8, held_out=1,
    ),
    steps=2,
    reports=Reports(previews_every=0),
  )
"""


def untrained(path, folder, flags=(), step=1):
  """Writes the run of a config with these flags, random, without a step.

  Args:
    path: of a config, or an Experiment.
    step: of the checkpoint; training resumes from 0 at the first step.
  """
  overrides = dict(
    flag.removeprefix("--config.").split("=", 1) for flag in flags
  )
  if not isinstance(path, config.Experiment):
    path = config.load(str(path))
  experiment = override(path, overrides)
  sharding = experiment.mesh.build()
  run, tokenizer, frozen, _ = prepare_run(experiment, str(folder), sharding)
  batch = sharding.distribute(held_out(run.experiment, tokenizer))
  programs = CompiledTask(run.experiment.task, sharding, 0, frozen, batch)
  where = os.path.join(folder, "checkpoints")
  with contextlib.closing(Checkpoints(where)) as checkpoints:
    state = jax.device_put(state_like(programs.shapes), programs.shardings)
    checkpoints.save(step, state)
