"""FLUX.1 schnell from scratch at 256 x 256, as in MLPerf Training 5.1.

The published recipe (mlcommons/training, text_to_image): 1,099,776 images of
CC12M, validated on 29,696 of COCO 2014 every 262,144 examples, until the mean
of the losses at the times 0, 1/8, ..., 7/8 is 0.586. AdamW at a constant 1e-4,
gradients clipped to 1, uniform times, 256 tokens of T5, text dropped in a tenth
of examples. 11,891 M parameters.

Betas and weight decay are taken to be torchtitan's; submitters choose the batch
and the learning rate with it: 1,024 here is ours, and no run was made. MLPerf
gives each held-out image one of the eight times; here data.held_out images are
measured at all eight. No average of the parameters is kept.
"""

from base import TEXT_ENCODERS, captioned, schnell, texts

from ldm_jax.config import Experiment
from ldm_jax.diffusion.loss import DenoisingLoss
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.diffusion.time_densities import UniformTimes
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.denoiser import DenoiserTask

BATCH, LENGTH = 1024, 256


def get_config():
  return Experiment(
    task=DenoiserTask(
      LatentDiffusion(
        unet=schnell(),
        conditioners=texts(LENGTH),
        schedule=Schedule("rectified_flow"),
        prediction="flow",
      ),
      optimizer=Optimizer(1e-4, betas=(0.9, 0.95), weight_decay=0.1, clip=1.0),
      loss=DenoisingLoss("flow", UniformTimes()),
      ema_decay=None,
      latent_scale=0.3611,
      validation_times=tuple(i / 8 for i in range(8)),
    ),
    data=captioned(
      "cc12m/train",
      "coco2014/validation",
      256,
      LENGTH,
      batch=BATCH,
      held_out=BATCH,
    ),
    steps=30_000,
    checkpoints=CheckpointPolicy(every=262_144 // BATCH),
    first_stage="runs/kl_f8c16",
    text_encoders=TEXT_ENCODERS,
  )
