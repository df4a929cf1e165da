"""The first stage of the x4 upscaler: kl-f4 with four latent channels.

No figure was published. 55.3 M parameters.
"""

from ldm_jax.config import Data, Experiment
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask


def get_config():
  trunk = ConvStack(multipliers=(1, 2, 4))
  adam = Optimizer(4.5e-6 * 10, (0.5, 0.9), weight_decay=0.0)
  return Experiment(
    task=AutoencoderTask(
      Autoencoder(trunk, latent_channels=4),
      optimizer=adam,
      critic_optimizer=adam,
    ),
    data=Data(
      source=Folder("open_images/train"),
      validation=Folder("open_images/validation"),
      augment=Augment(256),
      batch=10,
    ),
    steps=176_991,
  )
