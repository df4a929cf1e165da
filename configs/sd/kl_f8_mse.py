"""sd-vae-ft-mse: kl-f8 with an L2 loss, a smaller LPIPS weight and an EMA.

The authors trained the decoder alone, 280,000 steps of 192 from kl-f8 and its
EMA continuation; here encoder and decoder are trained. rFID 4.70, PSNR 24.5 dB
on COCO 2017 (published).
"""

from ldm_jax.config import Data, Experiment
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask


def get_config():
  adam = Optimizer(4.5e-6 * 192, (0.5, 0.9), weight_decay=0.0)
  return Experiment(
    task=AutoencoderTask(
      Autoencoder(),
      optimizer=adam,
      critic_optimizer=adam,
      pixel_norm="l2",
      perceptual_weight=0.1,
      ema_decay=0.9999,
      disc_start=0,
    ),
    data=Data(
      source=Folder("laion_aesthetics/train"),
      validation=Folder("laion_aesthetics/validation"),
      augment=Augment(256),
      batch=192,
    ),
    steps=280_000,
  )
