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
from ldm_jax.diffusion.time_densities import LogitNormalTimes
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.t5 import T5Encoder
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
  density="uniform",
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
      loss=DenoisingLoss(prediction, density),
      latent_scale=latent_scale,
      **task,
    ),
    data=dataclasses.replace(data, batch=batch),
    steps=steps,
    checkpoints=CheckpointPolicy(every=5000),
    first_stage=f"runs/{stage}",
    text_encoders=text_encoders,
  )


def three_texts():
  """SD 3's text encoders: CLIP ViT-L and OpenCLIP ViT-bigG, then T5 XXL.

  The authors drop each of the three in 46.4% of examples, and so all of them in
  10%; here CLIP's two are dropped together, and T5, in 31.6% each.
  """
  clips = ClipEmbedder(
    (CLIP_L.clone(projection=768), OPEN_CLIP_G),
    (1, 1),
    (PADDING, 0),
    is_normed=False,
    is_pooled=True,
    is_all_pooled=True,
    context_width=4096,
    drop_rate=0.316,
  )
  t5 = T5Encoder(is_scanned=True, dtype="bfloat16")
  return clips, T5Embedder(t5, drop_rate=0.316)


def multimodal(unet, size, *, batch, shift=1.0):
  """Trains an MMDiT as SD 3  (Esser et al. 2024, sections 3.1 and 5.3).

  A rectified flow at logit-normal times, AdamW of rate 1e-4 after 1,000 steps
  of warm-up, 500,000 steps. The authors average the parameters every 100 steps
  with the factor 0.99.

  Args:
    shift: of the times; 3 at 1024 x 1024.
  """
  data = captioned(f"captions_{size}", size)
  t5_tokenizer = TokenizerConfig(path="models/tokenizer_3", length=256)
  names = ("text_encoder", "text_encoder_2", "text_encoder_3")
  return diffusion(
    unet.clone(is_scanned=True, remat="full", dtype="bfloat16"),
    dataclasses.replace(data, t5_tokenizer=t5_tokenizer),
    three_texts(),
    batch=batch,
    steps=500_000,
    warmup=1000,
    schedule=Schedule("rectified_flow"),
    prediction="flow",
    density=LogitNormalTimes(shift=shift),
    latent_scale=1.5305,
    text_encoders=tuple(f"models/{name}" for name in names),
    stage="kl_f8c16",
    ema_decay=0.9999,
  )
