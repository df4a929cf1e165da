"""Functions shared by the configs of Stable Diffusion's published models.

Their captioned images come from LAION's data sets: folders of images with text
files. The text encoders are read from folders in transformers' format, the
first stage from a run (`ldm-jax convert` makes one from a published model, and
--config.start reads a published model itself). Figures in the configs'
docstrings are the authors'. Every model drops a tenth of the captions (SD 1.1
and 1.2 did not).
"""

import dataclasses

from ldm_jax.config import Data, Experiment
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.text.tokenizers import TokenizerConfig
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.diffusion.loss import DenoisingLoss
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.denoiser import DenoiserTask

NOISE = Schedule(start=0.00085, end=0.012)
PADDING = 49407  # CLIP's padding token; OpenCLIP's is 0

CLIP_L = ClipText()
OPEN_CLIP_H = ClipText(width=1024, depth=24, heads=16, activation="gelu")
OPEN_CLIP_G = ClipText(
  width=1280, depth=32, heads=20, activation="gelu", projection=1280
)


def clip_l():
  """SD 1's text encoder: the last hidden states of CLIP ViT-L/14."""
  return ClipEmbedder((CLIP_L,), (0,), (PADDING,), drop_rate=0.1)


def open_clip_h():
  """SD 2's text encoder: OpenCLIP ViT-H, states before the last block."""
  return ClipEmbedder((OPEN_CLIP_H,), (1,), (0,), drop_rate=0.1)


def unet_1():
  """The U-Net of SD 1: 859.5 M parameters."""
  return UNet()


def unet_2():
  """The U-Net of SD 2: 865.9 M parameters."""
  plan = AttentionPlan((1, 1, 1, 0), 1, None, 64, is_linear=True)
  return UNet(attention=plan)


def captioned(name, size, transforms=(), **augment):
  """A folder of images with captions, tokenized by CLIP's tokenizer."""
  return Data(
    source=Folder(f"{name}/train"),
    validation=Folder(f"{name}/validation"),
    augment=Augment(size, flip=False, **augment),
    tokenizer=TokenizerConfig(path="models/tokenizer", length=77),
    transforms=transforms,
  )


def diffusion(
  unet,
  data,
  conditioners,
  *,
  batch,
  steps,
  rate=1e-4,
  warmup=10_000,
  schedule=NOISE,
  prediction="eps",
  latent_scale=0.18215,
  text_encoders=("models/text_encoder",),
  noise_augmentation_schedule=None,
  stage="kl_f8",
  **task,
):
  """Trains a diffusion model on the latents of the run runs/STAGE."""
  model = LatentDiffusion(
    unet=unet,
    conditioners=conditioners,
    schedule=schedule,
    prediction=prediction,
    noise_augmentation_schedule=noise_augmentation_schedule,
  )
  return Experiment(
    task=DenoiserTask(
      model,
      optimizer=Optimizer(rate, warmup=warmup),
      loss=DenoisingLoss(prediction),
      latent_scale=latent_scale,
      **task,
    ),
    data=dataclasses.replace(data, batch=batch),
    steps=steps,
    checkpoints=CheckpointPolicy(every=5000),
    first_stage=f"runs/{stage}",
    text_encoders=text_encoders,
  )
