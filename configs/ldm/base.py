"""Functions shared by the configs of LDM's published experiments.

Rombach et al. 2022 and CompVis/latent-diffusion. Learning rates are the ones
that were used: the published base rate times the batch size (and the number of
devices). Data sets of tensorflow-datasets must be prepared first (see
ldm_jax/data/sources/tfds_source.py); all others are folders of images. Figures
in the configs' docstrings, V100-days included, are the authors'.
"""

import dataclasses

from ldm_jax.config import Data, Experiment
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.sources.tfds_source import tfds_source
from ldm_jax.data.text.tokenizers import TokenizerConfig
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.diffusion.loss import DenoisingLoss
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import VectorQuantizer
from ldm_jax.nn.discriminator import PatchDiscriminator
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.denoiser import DenoiserTask

FACES = Schedule(start=0.0015, end=0.0195)  # also ImageNet and text models
CHURCHES = Schedule(start=0.0015, end=0.0155)  # also super-resolution
L1 = Schedule(start=0.0015, end=0.0205)  # models trained with the L1 loss


def folders(name, size, **augment):
  """A data set in the folders NAME/train and NAME/validation."""
  return Data(
    source=Folder(f"{name}/train"),
    validation=Folder(f"{name}/validation"),
    augment=Augment(size, **augment),
  )


def tfds(name, size, train="train", held_out="validation", **augment):
  """A data set of tensorflow-datasets."""
  return Data(
    source=tfds_source(name, train),
    validation=tfds_source(name, held_out),
    augment=Augment(size, **augment),
  )


def captioned(name, size):
  """A folder of images with captions, tokenized by BERT's tokenizer."""
  return dataclasses.replace(
    folders(name, size, flip=False),
    tokenizer=TokenizerConfig(path="models/bert-base-uncased", length=77),
  )


def open_images(size, transforms):
  """OpenImages with its object boxes; the shorter side of a crop is `size`."""
  return dataclasses.replace(
    tfds("open_images_v4", size), transforms=transforms
  )


def kl(multipliers, channels, attention_levels=()):
  """An autoencoder with a KL-regularized Gaussian bottleneck."""
  trunk = ConvStack(multipliers=multipliers, attention_levels=attention_levels)
  return Autoencoder(trunk, latent_channels=channels)


def vq(
  multipliers, channels, codes, attention_levels=(), has_mid_attention=True
):
  """An autoencoder with a vector-quantized bottleneck of `codes` codes."""
  trunk = ConvStack(
    multipliers=multipliers,
    attention_levels=attention_levels,
    has_mid_attention=has_mid_attention,
  )
  return Autoencoder(trunk, channels, VectorQuantizer(codes, channels))


def first_stage(
  autoencoder, *, batch, steps, disc_start, disc_weight=0.5, disc_layers=3
):
  """Trains a first stage on OpenImages: shorter side 384, crops of 256."""
  is_vq = isinstance(autoencoder.bottleneck, VectorQuantizer)
  adam = Optimizer(4.5e-6 * batch, (0.5, 0.9), weight_decay=0.0)
  data = folders("open_images", 256, scale=(2 / 3, 2 / 3), flip=False)
  return Experiment(
    task=AutoencoderTask(
      autoencoder,
      discriminator=PatchDiscriminator(layers=disc_layers),
      optimizer=adam,
      critic_optimizer=adam,
      bottleneck_weight=1.0 if is_vq else 1e-6,
      reduction="mean" if is_vq else "sum",
      disc_start=disc_start,
      disc_weight=disc_weight,
    ),
    data=dataclasses.replace(data, batch=batch),
    steps=steps,
    checkpoints=CheckpointPolicy(every=5000, best="psnr", best_is="max"),
  )


def self_attention(depths, heads=None, head_width=None):
  """Transformer blocks without cross-attention."""
  return AttentionPlan(depths, 1, heads, head_width, "plain")


def cross_attention(depths, heads=None, head_width=None, mid_depth=1):
  """Transformer blocks with self- and cross-attention."""
  return AttentionPlan(depths, mid_depth, heads, head_width)


def second_stage(
  unet: UNet,
  data: Data,
  *,
  stage: str,
  batch: int,
  rate: float,
  steps: int,
  schedule: Schedule = FACES,
  conditioners=(),
  norm="l2",
  warmup=0,
  latent_scale: float | None = 1.0,
  accumulate=1,
):
  """Trains a diffusion model on the latents of the run runs/STAGE."""
  return Experiment(
    task=DenoiserTask(
      LatentDiffusion(unet=unet, conditioners=conditioners, schedule=schedule),
      optimizer=Optimizer(rate, warmup=warmup),
      loss=DenoisingLoss(norm=norm),
      latent_scale=latent_scale,
      accumulate=accumulate,
    ),
    data=dataclasses.replace(data, batch=batch),
    steps=steps,
    checkpoints=CheckpointPolicy(every=5000),
    first_stage=f"runs/{stage}",
  )
