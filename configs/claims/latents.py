"""Class to image at 64 x 64 on the latents of a first stage of any f.

The recipe is one for all, pixels among them; see pixels.py.
"""

from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.data.glyphs import Glyphs
from ldm_jax.diffusion.loss import DenoisingLoss
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioner import ClassEmbedder
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.runtime.keeping import Keeping
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.tasks.denoising import Denoising


def get_config(first_stage=None, channels=4):
  return Experiment(
    task=Denoising(
      model=LatentDiffusion(
        first_stage=first_stage,
        unet=UNet(
          out_channels=channels,
          channels=48,
          multipliers=(1, 2),
          blocks=1,
          attention=AttentionPlan(depths=(0, 1), heads=4),
          vector="mlp",
          octaves=3,
          modulation="scale_shift",
          groups=12,
        ),
        schedule=Schedule("rectified_flow"),
        prediction="flow",
        conditioners=(ClassEmbedder(classes=48, width=128, joins="both"),),
      ),
      # The rate stays, so that a run may be judged whenever it is stopped.
      optimizer=Optimizer(rate=7e-4, betas=(0.9, 0.99), warmup=20, muon=5e-3),
      loss=DenoisingLoss("flow"),
      latents="mode",
      ema_decay=0.99,
    ),
    data=Data(
      source=Glyphs(level=0, split="train", detail=2),
      validation=Glyphs(level=0, split="validation", size=512, detail=2),
      batch=32,
      held_out=64,
      threads=2,
    ),
    steps=100,
    checkpoints=Keeping(every=100_000),
    reports=Reports(every=10, previews_every=0),
  )
