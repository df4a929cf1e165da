"""Stage one with a user-defined first stage, regularizer and source."""

from my_diffusion.first_stage import PatchAutoencoder
from my_diffusion.regularizer import Decorrelation
from my_diffusion.source import CsvSource

from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask


def get_config():
  return Experiment(
    task=AutoencoderTask(
      autoencoder=PatchAutoencoder(stride=4, latent_channels=8),
      perceptual=None,
      discriminator=None,
      optimizer=Optimizer(rate=3e-3),
      pixel_norm="l2",
      bottleneck_weight=1e-3,
      regularizers=(Decorrelation(),),
    ),
    data=Data(
      source=CsvSource("images.csv", start=32),
      validation=CsvSource("images.csv", stop=32),
      batch=16,
      held_out=8,
      threads=1,
    ),
    steps=20,
    checkpoints=CheckpointPolicy(every=10),
    reports=Reports(every=5, previews_every=0),
  )
