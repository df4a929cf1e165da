"""Shared by the configs of the second stages on the built-in glyphs.

A U-Net of about 2.5 M parameters on the 8 x 8 x 8 latents of
glyphs_autoencoder.py, for twelve minutes on two CPU cores. Latents this small
remain recognizable under much noise, so only the noisiest times teach the
network to use the condition. A rectified flow (Liu et al. 2023) has more of
such times than LDM's schedule, and its velocity target weights them like all
others.

In equal time Muon with batches of 128 reaches a lower loss than AdamW with 64
or 32; see benchmarks/quality.md.
"""

from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.diffusion.loss import DenoisingLoss
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.denoiser import DenoiserTask

STEPS = 1500
FLOW = Schedule("rectified_flow")
LDM = Schedule(start=0.0015, end=0.0205)  # LDM's schedule with the noisiest end


def second_stage(
  *conditioners,
  kind="transformer",
  vector=None,
  prediction="flow",
  schedule=FLOW,
  steps=STEPS,
  transforms=(),
  tokenizer=None,
):
  """A second stage with these conditioners.

  Args:
    conditioners: modules that each encode one array of the batch.
    kind: "plain" (no cross-attention) where no conditioner returns tokens.
    vector: "mlp" where a conditioner returns a vector.
    transforms: applied to every example; they make the conditioners' inputs.
  """
  unet = UNet(
    out_channels=8,
    channels=48,
    multipliers=(1, 2),
    blocks=1,
    attention=AttentionPlan(depths=(0, 1), heads=4, kind=kind),
    vector=vector,
    octaves=3,
    modulation="scale_shift",
    groups=12,
  )
  return Experiment(
    task=DenoiserTask(
      model=LatentDiffusion(
        unet=unet,
        schedule=schedule,
        prediction=prediction,
        conditioners=conditioners,
      ),
      optimizer=Optimizer(
        rate=7e-4,
        betas=(0.9, 0.99),
        warmup=20,
        decay="cosine",
        decay_steps=steps,
        muon=5e-3,
      ),
      loss=DenoisingLoss(prediction),
      latents="mode",
      ema_decay=0.99,
      preview_steps=10,
    ),
    data=Data(
      source=Glyphs(level=0, split="train"),
      validation=Glyphs(level=0, split="validation", size=1024),
      tokenizer=tokenizer,
      transforms=transforms,
      batch=128,
      held_out=128,
      threads=2,
    ),
    steps=steps,
    checkpoints=CheckpointPolicy(every=steps, best="loss"),
    # Compiling a preview takes as long as sixty steps.
    reports=Reports(every=50, previews_every=0),
  )
