"""sd-vae-ft-ema: the decoder of kl-f8, trained on with LDM's loss.

L1 + LPIPS and the discriminator, as kl-f8 itself was trained, and a moving
average of the decoder. The encoder keeps every bit, so that diffusion models of
kl-f8's latents can use it. The authors trained 313,198 steps of 192 images from
LAION-Aesthetics and LAION-Humans. rFID 4.42, PSNR 23.8 dB on COCO 2017
(published).

--config.start is the autoencoder to begin from: a folder or repository of
diffusers, a single file, or a run.
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
      ema_decay=0.9999,
      disc_start=0,
      trains=("decoder",),
    ),
    data=Data(
      source=Folder("laion_aesthetics_and_humans/train"),
      validation=Folder("laion_aesthetics_and_humans/validation"),
      augment=Augment(256),
      batch=192,
    ),
    steps=313_198,
    start="CompVis/stable-diffusion-v1-4",
  )
