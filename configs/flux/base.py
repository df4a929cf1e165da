"""Functions shared by the configs of FLUX.1.

Captioned images are folders with text files; the text encoders are read from
folders in transformers' format, the first stage from a run, which `ldm-jax
convert` makes of FLUX.1's autoencoder.
"""

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
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.denoiser import DenoiserTask

TEXT_ENCODERS = ("models/text_encoder", "models/text_encoder_2")


def texts(length, drop_rate=0.1):
  """CLIP ViT-L's pooled vector, and `length` tokens of T5 XXL, each dropped
  in a tenth of examples."""
  clip = ClipEmbedder(
    (ClipText(),), is_pooled=True, has_context=False, drop_rate=drop_rate
  )
  encoder = T5Encoder(is_scanned=True, dtype="bfloat16")
  return clip, T5Embedder(encoder, length, drop_rate=drop_rate)


def schnell():
  """FLUX.1 schnell's network: without an embedding of guidance.

  One scan over each kind of blocks, which are recomputed in the backward pass.
  """
  return Flux(
    embeds_guidance=False, is_scanned=True, remat="full", dtype="bfloat16"
  )


def captioned(train, validation, size, length, **data):
  """Folders of images with captions, tokenized for CLIP and for T5."""
  return Data(
    source=Folder(train),
    validation=Folder(validation),
    augment=Augment(size, flip=False),
    tokenizer=TokenizerConfig(path="models/tokenizer", length=77),
    t5_tokenizer=TokenizerConfig(path="models/tokenizer_2", length=length),
    **data,
  )


def tuned(network, length, shift=1.0):
  """Trains published weights further, at a rate of 1e-5, on eight devices.

  Args:
    length: tokens of T5.
    shift: of the times of training.
  """
  return Experiment(
    task=DenoiserTask(
      LatentDiffusion(
        unet=network,
        conditioners=texts(length),
        schedule=Schedule("rectified_flow"),
        prediction="flow",
      ),
      optimizer=Optimizer(1e-5, weight_decay=0.0, clip=1.0),
      loss=DenoisingLoss("flow", LogitNormalTimes(shift=shift)),
      latent_scale=0.3611,
    ),
    data=captioned(
      "captioned/train", "captioned/validation", 1024, length, batch=32
    ),
    mesh=MeshShape(fsdp=8),
    steps=10_000,
    checkpoints=CheckpointPolicy(every=1000),
    first_stage="runs/kl_f8c16",
    text_encoders=TEXT_ENCODERS,
  )
