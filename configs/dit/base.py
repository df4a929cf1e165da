"""Functions shared by the configs of DiT's and SiT's published experiments.

Peebles and Xie 2023 (facebookresearch/DiT) and Ma et al. 2024 (willisma/SiT):
AdamW at a constant rate of 1e-4 without weight decay, batches of 256, centre
crops mirrored at random, and Stable Diffusion's autoencoder, which
`ldm-jax convert` makes a run of. Figures in the configs' docstrings are the
authors'.
"""

import dataclasses

from ldm_jax.config import Data, Experiment
from ldm_jax.data.sources.tfds_source import tfds_source
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.diffusion.loss import DenoisingLoss
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.dit.dit import dit_of_size
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.denoiser import DenoiserTask

DDPM = Schedule("linear", start=1e-4, end=0.02)
FLOW = Schedule("rectified_flow")


def imagenet(size):
  """ImageNet's training and validation images in crops of `size` pixels."""
  return Data(
    source=tfds_source("imagenet2012", "train"),
    validation=tfds_source("imagenet2012", "validation"),
    augment=Augment(size),
    batch=256,
  )


def class_conditional(
  unet, data, *, schedule=DDPM, prediction="eps", steps=7_000_000
):
  """Trains a transformer on the 1,000 classes, a tenth of them dropped."""
  labels = ClassEmbedder(
    1000, unet.width, joins="vector", drop_rate=0.1, deviation=0.02
  )
  return Experiment(
    task=DenoiserTask(
      LatentDiffusion(
        unet=unet,
        conditioners=(labels,),
        schedule=schedule,
        prediction=prediction,
      ),
      optimizer=Optimizer(1e-4, weight_decay=0.0),
      loss=DenoisingLoss(prediction),
      latent_scale=0.18215,
      ema_decay=0.9999,
    ),
    data=data,
    steps=steps,
    checkpoints=CheckpointPolicy(every=5000),
    first_stage="runs/kl_f8",
  )


def network(size, patch, side):
  """A DiT of a published size, for images of `side` pixels.

  One scan over its blocks, each recomputed in the backward pass.
  """
  return dit_of_size(size, patch).clone(
    learns_variance=True,
    grid=side // (8 * patch),
    is_scanned=True,
    remat="full",
    dtype="bfloat16",
  )


def flow(unet):
  """The same network as a SiT, on FLOW's times."""
  return dataclasses.replace(unet, flow_steps=FLOW.steps)
