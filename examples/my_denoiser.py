"""Stage two on the latents of my_autoencoder.py, with user-defined parts.

A backbone, conditioner, transform, loss and tracker of `my_diffusion`.
"""

from my_diffusion.backbone import FourierMixer
from my_diffusion.conditioner import ColorEmbedder
from my_diffusion.loss import HuberLoss
from my_diffusion.source import CsvSource
from my_diffusion.tracker import ConsoleTracker
from my_diffusion.transform import MeanColor

from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.denoiser import DenoiserTask


def get_config():
  return Experiment(
    task=DenoiserTask(
      model=LatentDiffusion(
        unet=FourierMixer(channels=32, depth=2),
        conditioners=(ColorEmbedder(width=32),),
      ),
      optimizer=Optimizer(rate=1e-3),
      loss=HuberLoss(delta=0.5),
      ema_decay=0.99,
    ),
    data=Data(
      source=CsvSource("images.csv", start=32),
      validation=CsvSource("images.csv", stop=32),
      transforms=(MeanColor(),),
      batch=16,
      held_out=8,
      threads=1,
    ),
    steps=20,
    checkpoints=CheckpointPolicy(every=10),
    reports=Reports(every=5, previews_every=0),
    trackers=(ConsoleTracker(),),
  )
